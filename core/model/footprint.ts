/** How many parameters a model has, part by part, from its config alone; pure. */

import type { LayerKind, ModelConfig } from "./config.ts";
import { familyOf, sourcesIn } from "./families/families.ts";
import type { TensorSource } from "./families/model-family.ts";

/** Parts of a model that are kept, and therefore counted, in ways of their own. */
export const MODEL_PARTS = [
  "embedding",
  "lmHead",
  "attention",
  "gates",
  "shared",
  "dense",
  "experts",
] as const;

/** One of MODEL_PARTS. Norms count with what they stand before; the final norm with lmHead. */
export type ModelPart = (typeof MODEL_PARTS)[number];

/** Parameters of one part. */
export interface PartSize {
  /** Parameters in matrices. */
  readonly matrices: number;
  /** Parameters in vectors: norms, biases, sinks. */
  readonly vectors: number;
}

/** Parameters of every part, all layers together; `lmHead` has no matrix where it is tied to the embedding. */
export type ModelSize = Readonly<Record<ModelPart, PartSize>>;

/** Counts the parameters of a model. */
export function modelSize(config: ModelConfig): ModelSize {
  const family = familyOf(config);
  const { embedding, lmHead, finalNorm } = family.modelSources(config);
  const size: Record<ModelPart, PartSize> = {
    embedding: sizeOf([embedding]),
    lmHead: sizeOf(lmHead.name === embedding.name ? [finalNorm] : [lmHead, finalNorm]),
    attention: NOTHING,
    gates: NOTHING,
    shared: NOTHING,
    dense: NOTHING,
    experts: NOTHING,
  };
  const add = (part: ModelPart, sources: object, times = 1) => {
    size[part] = sum(size[part], sizeOf(sourcesIn(sources)), times);
  };
  for (const [layer, kind] of config.layers.entries()) {
    add("attention", family.attentionSources(config, layer));
    if (kind === "dense") {
      add("dense", family.denseSources(config, layer));
      continue;
    }
    const { shared, ...gates } = family.moeSources(config, layer);
    add("gates", gates);
    if (shared) add("shared", shared);
    // The experts of a layer are all alike.
    add("experts", family.expertSources(config, layer, 0), config.numExperts);
  }
  return size;
}

/** Parameters of a model: all of them, and those that one token's computation reads (not the input embedding). */
export function parameterCounts(
  config: ModelConfig,
  size: ModelSize,
): { readonly total: number; readonly active: number } {
  let total = 0;
  let active = 0;
  for (const part of MODEL_PARTS) {
    const parameters = size[part].matrices + size[part].vectors;
    total += parameters;
    if (part === "embedding" && !config.tieWordEmbeddings) continue;
    const share = part === "experts" ? config.numExpertsPerToken / config.numExperts : 1;
    active += parameters * share;
  }
  return { total, active };
}

/** How many layers there are of each kind. */
export function layerCounts(config: ModelConfig): Readonly<Record<LayerKind, number>> {
  const counts = { moe: 0, dense: 0 };
  for (const kind of config.layers) counts[kind]++;
  return counts;
}

const NOTHING: PartSize = { matrices: 0, vectors: 0 };

function sum(a: PartSize, b: PartSize, times: number): PartSize {
  return {
    matrices: a.matrices + times * b.matrices,
    vectors: a.vectors + times * b.vectors,
  };
}

function sizeOf(sources: Iterable<TensorSource>): PartSize {
  let matrices = 0;
  let vectors = 0;
  for (const { shape } of sources) {
    const elements = shape.reduce((product, size) => product * size, 1);
    if (shape.length > 1) matrices += elements;
    else vectors += elements;
  }
  return { matrices, vectors };
}
