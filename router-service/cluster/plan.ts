/** Who holds what, from what every shard said of itself; pure. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import { decideWeights, type WeightsSetting, type WeightsVote } from "../../core/handshake.ts";
import { moeLayers, type ModelConfig } from "../../core/model/config.ts";
import { expertBytes } from "../../core/weights.ts";
import type { Placement } from "../../proto/gen/switchyard/v1/cluster.ts";
import type { ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import type { ExpertLocations } from "./dispatch.ts";
import { FIRST_EPOCH, firstPlacementMessage, planFirstPlacement } from "./first-placement.ts";

/** Who holds what, decided once when every shard has said hello. */
export interface ClusterPlan {
  readonly epoch: number;
  readonly weights: WeightsDtype;
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
  readonly placement: Placement;
}

/** The plan of epoch 1 from every shard's hello, in the order of the addresses. Throws HandshakeError or PlacementError. */
export function planCluster(
  router: WeightsVote,
  config: ModelConfig,
  hellos: readonly ShardHello[],
): ClusterPlan {
  const weights = decideWeights([
    router,
    ...hellos.map((hello) => ({
      weights: hello.weights as WeightsSetting,
      shaderF16: hello.shaderF16,
    })),
  ]);
  const layers = moeLayers(config);
  const byRank = [...hellos.entries()].sort(([, a], [, b]) => a.rank - b.rank);
  const ranges = planFirstPlacement({
    layers,
    numExperts: config.numExperts,
    expertBytes: expertBytes(config, weights),
    memoryBytes: byRank.map(([, hello]) => hello.memoryBytes),
  });
  const locations = new Uint16Array(config.numExperts);
  for (const [shard, { from, to }] of ranges.entries()) locations.fill(shard, from, to);
  return {
    epoch: FIRST_EPOCH,
    weights,
    shards: byRank.map(([index, { rank }], shard) => ({
      rank,
      index,
      placement: firstPlacementMessage(layers, ranges[shard], weights),
    })),
    locations: new Map(layers.map((layer) => [layer, locations])),
  };
}
