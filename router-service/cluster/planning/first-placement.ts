/** Who holds what before any statistics, from what every shard said of itself; pure. */

import {
  bytesByExpert,
  commonFormat,
  type ExpertsFlags,
  type ExpertsSetting,
  expertsSetting,
  formatsOf,
} from "../../../core/expert-formats.ts";
import {
  decideExperts,
  decideWeights,
  type WeightsSetting,
  type WeightsVote,
} from "../../../core/handshake.ts";
import type { ExpertFormat } from "../../../core/expert-format.ts";
import type { Gpu } from "../../../core/gpu/device.ts";
import type { Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { moeLayers, type ModelConfig } from "../../../core/model/config.ts";
import type { ModelOverlay } from "../../../core/model/overlay.ts";
import type { ShardHello } from "../../../proto/gen/switchyard/v1/expert.ts";
import type { PlacedLayers } from "../../../core/placement/input.ts";
import { withMinCopies } from "../../../core/placement/min-copies.ts";
import type { LayerReplicas } from "../../../core/placement/placement.ts";
import { PlacementError } from "../errors.ts";
import { FIRST_EPOCH, planFirstPlacement } from "./contiguous-runs.ts";
import { bytesIn } from "./held-bytes.ts";
import type { StoredPlacement } from "./stored-placement.ts";

/** What a cluster works by: a placement, and the formats of what it places. */
export type ClusterPlacement = Pick<StoredPlacement, "placement" | "weights" | "experts">;

/** The router's say in the plan, and the model's. */
export interface PlanInput extends WeightsVote {
  /** The router's --experts-bits. */
  readonly experts: ExpertsSetting;
  readonly config: ModelConfig;
  /** The format that the checkpoint has all experts in; undefined: floats. */
  readonly storedExperts: ExpertFormat | undefined;
  readonly overlay?: ModelOverlay;
}

/** The say of a router with these settings: of its checkpoint, and of its GPU, where it has one. */
export function planInputOf(
  { config, storedExperts, overlay }: Pick<Checkpoint, "config" | "storedExperts" | "overlay">,
  settings: ExpertsFlags & Pick<WeightsVote, "weights">,
  gpu: Pick<Gpu, "shaderF16"> | undefined,
): PlanInput {
  return {
    config,
    weights: settings.weights,
    shaderF16: gpu?.shaderF16 ?? false,
    experts: expertsSetting(settings),
    storedExperts,
    overlay,
  };
}

/** What else the first placement depends on. */
export interface FirstTerms {
  /** Holds experts only where the shards have too little room. */
  readonly spare?: ShardHello | undefined;
  /** Copies of each expert, as far as memory goes; absent: 1. */
  readonly minCopies?: number;
}

/** The placement of epoch 1 from every shard's hello. Throws HandshakeError or PlacementError. */
export function planCluster(
  router: PlanInput,
  hellos: readonly ShardHello[],
  { spare, minCopies = 1 }: FirstTerms = {},
): ClusterPlacement {
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
  const layers = moeLayers(config);
  const bytes = bytesByExpert(config, formatsOf(overlay, experts));
  const replicasOn = (holders: readonly ShardHello[]) => {
    const memoryBytes = holders.map((hello) => hello.memoryBytes);
    const ranges = planFirstPlacement({ layers, bytesByExpert: bytes, memoryBytes });
    return holders.flatMap(({ rank }, index) =>
      Array.from({ length: ranges[index].to - ranges[index].from }, () => [{ rank, share: 1 }]),
    );
  };
  const byRank = [...hellos].sort((a, b) => a.rank - b.rank);
  let replicas: LayerReplicas;
  try {
    replicas = replicasOn(byRank);
  } catch (error) {
    if (spare === undefined || !(error instanceof PlacementError)) throw error;
    replicas = replicasOn([...byRank, spare]);
  }
  let placed: PlacedLayers = new Map(layers.map((layer) => [layer, replicas]));
  const bytesOf = bytesIn({ config, formatOf: formatsOf(overlay, experts) });
  for (const holders of spare === undefined ? [byRank] : [byRank, [...byRank, spare]]) {
    const memory = new Map(holders.map(({ rank, memoryBytes }) => [rank, memoryBytes]));
    placed = withMinCopies(placed, minCopies, { memory, bytes: bytesOf });
  }
  return { placement: { epoch: FIRST_EPOCH, layers: placed }, weights, experts };
}
