/** The placement of epoch 1, before any statistics: every layer's experts in contiguous runs over the shards; pure. */

import type { WeightsDtype } from "../../core/expert-device.ts";
import { placementCrc } from "../../core/wire.ts";
import {
  WeightsDtype as PlacementWeights,
  type Placement,
} from "../../proto/gen/switchyard/v1/cluster.ts";
import { PlacementError } from "./errors.ts";

/** What the placement is made from. */
export interface FirstPlacementInput {
  /** Indices of the MoE layers. */
  readonly layers: readonly number[];
  /** Logical experts of a layer. */
  readonly numExperts: number;
  /** Device memory that one expert takes, bytes. */
  readonly expertBytes: number;
  /** Memory that each shard offers, bytes, in rank order. */
  readonly memoryBytes: readonly number[];
}

/**
 * How many experts of every layer each shard takes, in rank order: even shares, cut where a shard's memory ends and
 * given to those that have room. Throws PlacementError with the numbers where all together have too little memory.
 */
export function expertsPerShard(input: FirstPlacementInput): number[] {
  const { layers, numExperts, expertBytes, memoryBytes } = input;
  const room = memoryBytes.map((bytes) =>
    Math.min(numExperts, Math.floor(bytes / (expertBytes * Math.max(1, layers.length)))),
  );
  const shares = room.map(() => 0);
  let left = numExperts;
  while (left > 0) {
    const open = room.flatMap((limit, shard) => (shares[shard] < limit ? [shard] : []));
    if (open.length === 0) {
      throw new PlacementError(
        `${layers.length} layers of ${numExperts} experts take ${layers.length * numExperts * expertBytes} bytes; ` +
          `the shards offer ${memoryBytes.join(" + ")} bytes, room for ${numExperts - left} experts of every layer`,
      );
    }
    const even = Math.ceil(left / open.length);
    for (const shard of open) {
      const taken = Math.min(even, room[shard] - shares[shard], left);
      shares[shard] += taken;
      left -= taken;
    }
  }
  return shares;
}

/** The logical experts [from, to) of every layer that each shard holds, in rank order. Throws PlacementError. */
export function planFirstPlacement(
  input: FirstPlacementInput,
): { readonly from: number; readonly to: number }[] {
  let next = 0;
  return expertsPerShard(input).map((share) => {
    const from = next;
    next += share;
    return { from, to: next };
  });
}

/** The message that tells a shard to hold experts [from, to) of every layer from epoch 1 on. */
export function firstPlacementMessage(
  layers: readonly number[],
  experts: { readonly from: number; readonly to: number },
  weights: WeightsDtype,
): Placement {
  const ids = Array.from({ length: experts.to - experts.from }, (_, index) => experts.from + index);
  const placement: Placement = {
    epoch: FIRST_EPOCH,
    weights:
      weights === "f16" ? PlacementWeights.WEIGHTS_DTYPE_F16 : PlacementWeights.WEIGHTS_DTYPE_F32,
    layers:
      ids.length === 0
        ? []
        : layers.map((layer) => ({
            layer,
            experts: ids.map((expertId) => ({ expertId, splitWeight: 1 })),
          })),
    oldestLiveEpoch: FIRST_EPOCH,
    crc32: 0,
  };
  placement.crc32 = placementCrc(placement);
  return placement;
}

/** Epoch of the placement that routers start with. */
export const FIRST_EPOCH = 1;
