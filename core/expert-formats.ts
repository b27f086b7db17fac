/** In which format a cluster keeps each expert: what flags and the model's overlay say; pure. */

import type { WeightsDtype } from "./expert-device.ts";
import { EXPERT_FORMATS, type ExpertFormat, type FormatOf } from "./expert-format.ts";
import { moeLayers, type ModelConfig } from "./model/config.ts";
import type { ModelOverlay } from "./model/overlay.ts";
import { expertBytes } from "./weights.ts";

/** A router's or shard's say in the format of experts; auto: that of the checkpoint, or of the other weights. */
export type ExpertsSetting = "auto" | ExpertFormat;

/** Values of --experts-bits. */
export const EXPERT_BITS = ["auto", "32", "16", "8", "4", "mxfp4"] as const;

/** Values of --experts-group: columns that share a scale where experts are in 4 bits. */
export const EXPERT_GROUPS = ["32", "64", "128"] as const;

/** The flags that choose a format. */
export interface ExpertsFlags {
  readonly expertsBits: (typeof EXPERT_BITS)[number];
  readonly expertsGroup: (typeof EXPERT_GROUPS)[number];
}

/** What the flags ask for. */
export function expertsSetting({ expertsBits, expertsGroup }: ExpertsFlags): ExpertsSetting {
  switch (expertsBits) {
    case "32":
      return "f32";
    case "16":
      return "f16";
    case "8":
      return "int8";
    case "4":
      return `int4-g${expertsGroup}`;
    default:
      return expertsBits;
  }
}

/** Whether a hello's text is a say in the format of experts. */
export function isExpertsSetting(text: string): text is ExpertsSetting {
  return text === "auto" || (EXPERT_FORMATS as readonly string[]).includes(text);
}

/** The format of each expert: what the overlay says of it, else the common one. */
export function formatsOf(overlay: ModelOverlay | undefined, common: ExpertFormat): FormatOf {
  return (layer, expert) => overlay?.formatOf(layer, expert) ?? common;
}

/**
 * The format of experts that the overlay says nothing of.
 * @param stored the format that the checkpoint has them in; undefined: floats
 */
export function commonFormat(
  setting: ExpertsSetting,
  weights: WeightsDtype,
  stored: ExpertFormat | undefined,
): ExpertFormat {
  return setting === "auto" ? (stored ?? weights) : setting;
}

/** Bytes of each expert id in all MoE layers together, [numExperts]. */
export function bytesByExpert(config: ModelConfig, formatOf: FormatOf): number[] {
  const layers = moeLayers(config);
  return Array.from({ length: config.numExperts }, (_, expert) =>
    layers.reduce((sum, layer) => sum + expertBytes(config, formatOf(layer, expert)), 0),
  );
}

/** Bytes of all experts of a layer together, of the layer where they are most. */
export function largestLayerBytes(config: ModelConfig, formatOf: FormatOf): number {
  const experts = Array.from({ length: config.numExperts }, (_, expert) => expert);
  const layerBytes = moeLayers(config).map((layer) =>
    experts.reduce((sum, expert) => sum + expertBytes(config, formatOf(layer, expert)), 0),
  );
  return Math.max(0, ...layerBytes);
}
