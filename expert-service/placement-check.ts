/** Judges a placement before anything of it is loaded; pure. */

import type { WeightsDtype } from "../core/expert-device.ts";
import { commonestFirst, type ExpertFormat, type FormatOf } from "../core/expert-format.ts";
import type { ExpertsSetting } from "../core/expert-formats.ts";
import { formatFromWire } from "../core/format-message.ts";
import type { WeightsSetting } from "../core/handshake.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { placementCrc } from "../core/wire.ts";
import type {
  ExpertPeer,
  PhysicalExpert,
  ShardPlacement,
} from "../proto/gen/switchyard/v1/cluster.ts";
import {
  ExpertFormat as WireFormat,
  WeightsDtype as PlacementWeights,
} from "../proto/gen/switchyard/v1/cluster.ts";

/** A placement that the shard does not take; what it holds stays as it is. */
export class PlacementRefusedError extends Error {
  override readonly name = "PlacementRefusedError";
  /** It is not what was sent: nothing in it can be believed. */
  readonly damaged: boolean;
  constructor(message: string, damaged = false) {
    super(message);
    this.damaged = damaged;
  }
}

/** A placement that is no longer to be loaded: a newer one took its place. */
export class PlacementSupersededError extends Error {
  override readonly name = "PlacementSupersededError";
  readonly by: number;
  constructor(epoch: number, by: number) {
    super(`placement: epoch ${epoch} gives way to epoch ${by}`);
    this.by = by;
  }
}

/** What a shard can take. */
export interface ShardAbilities {
  readonly model: ModelConfig;
  /** The shard's own --weights. */
  readonly weights: WeightsSetting;
  /** The shard's own --experts-bits. */
  readonly experts: ExpertsSetting;
}

/** A checked placement. */
export interface CheckedPlacement {
  readonly epoch: number;
  readonly weights: WeightsDtype;
  /** Layer → its logical experts, ascending. */
  readonly layers: ReadonlyMap<number, readonly number[]>;
  /** The format of experts that say nothing of their own. */
  readonly common: ExpertFormat;
  /** Where experts may be fetched from, beside the checkpoint. */
  readonly peers: readonly ExpertPeer[];
  /** Format of each expert that it places. */
  readonly formatOf: FormatOf;
  /** The formats that occur, commonest first; where it places none, that of experts that say nothing of their own. */
  readonly formats: readonly ExpertFormat[];
}

/** Checks every field of a placement. Throws PlacementRefusedError naming field, value and expectation. */
export function checkPlacement(placement: ShardPlacement, shard: ShardAbilities): CheckedPlacement {
  const crc = placementCrc(placement);
  if (crc !== placement.crc32) {
    throw new PlacementRefusedError(
      `placement: crc32 is ${crc.toString(16)}, it states ${placement.crc32.toString(16)}`,
      true,
    );
  }
  if (placement.epoch < 1) {
    throw new PlacementRefusedError(`placement: epoch ${placement.epoch}, expected 1 or more`);
  }
  const weights = checkWeights(placement.weights, shard);
  const common = checkFormat(placement, shard);
  const layers = new Map<number, readonly number[]>();
  const formats = new Map<number, ReadonlyMap<number, ExpertFormat>>();
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
    formats.set(layer, ownFormats(layer, experts));
  }
  const formatOf: FormatOf = (layer, expert) => formats.get(layer)?.get(expert) ?? common;
  const found = commonestFirst(
    [...layers].flatMap(([layer, ids]) => ids.map((id) => formatOf(layer, id))),
  );
  return {
    epoch: placement.epoch,
    weights,
    layers,
    common,
    peers: placement.peers,
    formatOf,
    formats: found.length === 0 ? [common] : found,
  };
}

/** Whether two checked placements say the same. */
export function samePlacement(a: CheckedPlacement, b: CheckedPlacement): boolean {
  return (
    a.epoch === b.epoch &&
    a.weights === b.weights &&
    a.layers.size === b.layers.size &&
    [...a.layers].every(([layer, ids]) => {
      const others = b.layers.get(layer);
      return (
        sameIds(ids, others) && ids.every((id) => a.formatOf(layer, id) === b.formatOf(layer, id))
      );
    })
  );
}

/** Whether two ascending lists of experts are the same. */
function sameIds(a: readonly number[], b: readonly number[] | undefined): boolean {
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

/** The format of experts that say nothing of their own. */
function checkFormat({ expertFormat }: ShardPlacement, shard: ShardAbilities): ExpertFormat {
  const format = formatFromWire(expertFormat);
  if (format === undefined) {
    throw new PlacementRefusedError(`placement: expert_format ${expertFormat} is unknown`);
  }
  if (shard.experts !== "auto" && shard.experts !== format) {
    throw new PlacementRefusedError(
      `placement: experts in ${format}, the shard's --experts-bits is ${shard.experts}`,
    );
  }
  return format;
}

/** Formats of a layer's experts that have one of their own. */
function ownFormats(
  layer: number,
  experts: readonly PhysicalExpert[],
): ReadonlyMap<number, ExpertFormat> {
  const formats = new Map<number, ExpertFormat>();
  for (const { expertId, format: named } of experts) {
    if (named === WireFormat.EXPERT_FORMAT_UNSPECIFIED) continue;
    const format = formatFromWire(named);
    if (format === undefined) {
      throw new PlacementRefusedError(
        `placement: layer ${layer} expert ${expertId}: format ${named} is unknown`,
      );
    }
    formats.set(expertId, format);
  }
  return formats;
}
