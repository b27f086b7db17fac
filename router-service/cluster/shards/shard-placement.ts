/** What one shard is told of a placement; pure. */

import { formatsOf } from "../../../core/expert-formats.ts";
import { formatToWire } from "../../../core/format-message.ts";
import type { ModelOverlay } from "../../../core/model/overlay.ts";
import { placementCrc } from "../../../core/wire.ts";
import {
  ExpertFormat as WireFormat,
  type PhysicalExpert,
  WeightsDtype as WireWeights,
  type ShardPlacement,
} from "../../../proto/gen/switchyard/v1/cluster.ts";
import { expertPeers, type HeldExperts } from "./expert-peers.ts";
import type { ClusterPlacement } from "../planning/first-placement.ts";

/**
 * The message that tells the shard of this rank all that it holds in a placement's epoch; no layers where that is nothing.
 * @param held what the shards have now; undefined where nothing is known
 */
export function shardPlacement(
  { placement, weights, experts }: ClusterPlacement,
  rank: number,
  overlay: ModelOverlay | undefined,
  oldestLiveEpoch: number,
  held?: HeldExperts,
): ShardPlacement {
  const formatOf = formatsOf(overlay, experts);
  const layers = [...placement.layers].flatMap(([layer, replicas]) => {
    const held: PhysicalExpert[] = replicas.flatMap((copies, expertId) => {
      const copy = copies.find((one) => one.rank === rank);
      if (copy === undefined) return [];
      const format = formatOf(layer, expertId);
      const own = format === experts ? WireFormat.EXPERT_FORMAT_UNSPECIFIED : formatToWire(format);
      return [{ expertId, splitWeight: copy.share, format: own }];
    });
    return held.length === 0 ? [] : [{ layer, experts: held }];
  });
  const wanted = new Map(
    layers.map((of) => [of.layer, of.experts.map(({ expertId }) => expertId)]),
  );
  const message: ShardPlacement = {
    epoch: placement.epoch,
    weights: weights === "f16" ? WireWeights.WEIGHTS_DTYPE_F16 : WireWeights.WEIGHTS_DTYPE_F32,
    expertFormat: formatToWire(experts),
    layers,
    oldestLiveEpoch,
    peers: held === undefined ? [] : expertPeers(wanted, rank, held),
    crc32: 0,
  };
  message.crc32 = placementCrc(message);
  return message;
}
