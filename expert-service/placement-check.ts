/** Judges a placement before anything of it is loaded; pure. */

import type { WeightsDtype } from "../core/expert-device.ts";
import type { WeightsSetting } from "../core/handshake.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { placementCrc } from "../core/wire.ts";
import type { Placement } from "../proto/gen/switchyard/v1/cluster.ts";
import { WeightsDtype as PlacementWeights } from "../proto/gen/switchyard/v1/cluster.ts";

/** A placement that the shard does not take; what it holds stays as it is. */
export class PlacementRefusedError extends Error {
  override readonly name = "PlacementRefusedError";
}

/** What a shard can take. */
export interface ShardAbilities {
  readonly model: ModelConfig;
  /** The shard's own --weights. */
  readonly weights: WeightsSetting;
}

/** A checked placement. */
export interface CheckedPlacement {
  readonly epoch: number;
  readonly weights: WeightsDtype;
  /** Layer → its logical experts, ascending. */
  readonly layers: ReadonlyMap<number, readonly number[]>;
}

/** Checks every field of a placement. Throws PlacementRefusedError naming field, value and expectation. */
export function checkPlacement(placement: Placement, shard: ShardAbilities): CheckedPlacement {
  const crc = placementCrc(placement);
  if (crc !== placement.crc32) {
    throw new PlacementRefusedError(
      `placement: crc32 is ${crc.toString(16)}, it states ${placement.crc32.toString(16)}`,
    );
  }
  if (placement.epoch < 1) {
    throw new PlacementRefusedError(`placement: epoch ${placement.epoch}, expected 1 or more`);
  }
  const weights = checkWeights(placement.weights, shard);
  const layers = new Map<number, readonly number[]>();
  for (const { layer, experts } of placement.layers) {
    if (shard.model.layers[layer] !== "moe") {
      throw new PlacementRefusedError(`placement: layer ${layer} is not an MoE layer of the model`);
    }
    if (layers.has(layer)) throw new PlacementRefusedError(`placement: layer ${layer} is twice`);
    const ids = experts.map((expert) => expert.expertId).sort((a, b) => a - b);
    for (const [index, id] of ids.entries()) {
      if (id >= shard.model.numExperts) {
        throw new PlacementRefusedError(
          `placement: layer ${layer} expert ${id}, the model has ${shard.model.numExperts}`,
        );
      }
      if (id === ids[index - 1]) {
        throw new PlacementRefusedError(`placement: layer ${layer} expert ${id} is twice`);
      }
    }
    layers.set(layer, ids);
  }
  return { epoch: placement.epoch, weights, layers };
}

/** Whether two checked placements say the same. */
export function samePlacement(a: CheckedPlacement, b: CheckedPlacement): boolean {
  return (
    a.epoch === b.epoch &&
    a.weights === b.weights &&
    a.layers.size === b.layers.size &&
    [...a.layers].every(([layer, ids]) => sameIds(ids, b.layers.get(layer)))
  );
}

/** Whether two ascending lists of experts are the same. */
export function sameIds(a: readonly number[], b: readonly number[] | undefined): boolean {
  return b !== undefined && a.length === b.length && a.every((id, index) => id === b[index]);
}

function checkWeights(weights: PlacementWeights, shard: ShardAbilities): WeightsDtype {
  if (
    weights !== PlacementWeights.WEIGHTS_DTYPE_F16 &&
    weights !== PlacementWeights.WEIGHTS_DTYPE_F32
  ) {
    throw new PlacementRefusedError(`placement: weights ${weights}, expected F16 or F32`);
  }
  const dtype = weights === PlacementWeights.WEIGHTS_DTYPE_F16 ? "f16" : "f32";
  if (shard.weights !== "auto" && shard.weights !== dtype) {
    throw new PlacementRefusedError(
      `placement: weights ${dtype}, the shard's --weights is ${shard.weights}`,
    );
  }
  return dtype;
}
