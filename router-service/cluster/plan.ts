/** Who holds what, from what every shard said of itself; pure. */

import {
  bytesByExpert,
  commonFormat,
  type ExpertsSetting,
  formatsOf,
} from "../../core/expert-formats.ts";
import {
  decideExperts,
  decideWeights,
  type WeightsSetting,
  type WeightsVote,
} from "../../core/handshake.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { moeLayers, type ModelConfig } from "../../core/model/config.ts";
import type { ModelOverlay } from "../../core/model/overlay.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import type { ExpertLocations } from "./dispatch.ts";
import {
  type ClusterFormats,
  FIRST_EPOCH,
  firstPlacementMessage,
  planFirstPlacement,
} from "./first-placement.ts";

/** Who holds what, decided once when every shard has said hello. */
export interface ClusterPlan {
  readonly epoch: number;
  readonly formats: ClusterFormats;
  /** In rank order, as ExpertLocations count them. */
  readonly shards: readonly PlannedShard[];
  /** By MoE layer. */
  readonly locations: ReadonlyMap<number, ExpertLocations>;
}

/** One shard of the plan. */
export interface PlannedShard {
  readonly rank: number;
  /** Index of its address in the options. */
  readonly index: number;
  readonly placement: ShardPlacement;
}

/** The router's say in the plan, and the model's. */
export interface PlanInput extends WeightsVote {
  /** The router's --experts-bits. */
  readonly experts: ExpertsSetting;
  readonly config: ModelConfig;
  /** The format that the checkpoint has all experts in; undefined: floats. */
  readonly storedExperts: ExpertFormat | undefined;
  readonly overlay?: ModelOverlay;
}

/** The plan of epoch 1 from every shard's hello, in the order of the addresses. Throws HandshakeError or PlacementError. */
export function planCluster(router: PlanInput, hellos: readonly ShardHello[]): ClusterPlan {
  const { config, overlay, storedExperts } = router;
  const weights = decideWeights([
    router,
    ...hellos.map((hello) => ({
      weights: hello.weights as WeightsSetting,
      shaderF16: hello.shaderF16,
    })),
  ]);
  const setting = decideExperts([
    router.experts,
    ...hellos.map((hello) => hello.experts as ExpertsSetting),
  ]);
  const experts = commonFormat(setting, weights, storedExperts);
  const formats = { weights, experts, formatOf: formatsOf(overlay, experts) };
  const layers = moeLayers(config);
  const byRank = [...hellos.entries()].sort(([, a], [, b]) => a.rank - b.rank);
  const ranges = planFirstPlacement({
    layers,
    bytesByExpert: bytesByExpert(config, formats.formatOf),
    memoryBytes: byRank.map(([, hello]) => hello.memoryBytes),
  });
  const locations = new Uint16Array(config.numExperts);
  for (const [shard, { from, to }] of ranges.entries()) locations.fill(shard, from, to);
  return {
    epoch: FIRST_EPOCH,
    formats,
    shards: byRank.map(([index, { rank }], shard) => ({
      rank,
      index,
      placement: firstPlacementMessage(layers, ranges[shard], formats),
    })),
    locations: new Map(layers.map((layer) => [layer, locations])),
  };
}
