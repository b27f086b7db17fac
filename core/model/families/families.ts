/** The model families that the engine runs. */

import type { ModelConfig } from "../config.ts";
import { deepseekV2 } from "./deepseek-v2.ts";
import { deepseekV3 } from "./deepseek-v3.ts";
import { deepseek } from "./deepseek.ts";
import { gptOss } from "./gpt-oss.ts";
import { graniteMoe } from "./granitemoe.ts";
import { mixtral } from "./mixtral.ts";
import type { ModelFamily, TensorSource } from "./model-family.ts";
import { olmoe } from "./olmoe.ts";
import { qwen2Moe } from "./qwen2-moe.ts";
import { qwen3Moe } from "./qwen3-moe.ts";
import { fp8Scales, mxfp4Tensors } from "../checkpoint/stored-source.ts";

/** Every known family. */
export const modelFamilies: readonly ModelFamily[] = [
  deepseek,
  deepseekV2,
  deepseekV3,
  gptOss,
  graniteMoe,
  mixtral,
  olmoe,
  qwen2Moe,
  qwen3Moe,
];

/** The family of a config that one of the families has read. */
export function familyOf(config: ModelConfig): ModelFamily {
  const family = modelFamilies.find((family) => family.modelType === config.modelType);
  if (!family) throw new TypeError(`no model family for ${config.modelType}`);
  return family;
}

/** Every tensor source that a checkpoint of this config must have. */
export function expectedSources(config: ModelConfig): TensorSource[] {
  const family = familyOf(config);
  const sources = [...sourcesIn(family.modelSources(config))];
  for (const [layer, kind] of config.layers.entries()) {
    sources.push(...sourcesIn(family.attentionSources(config, layer)));
    if (kind === "dense") {
      sources.push(...sourcesIn(family.denseSources(config, layer)));
      continue;
    }
    sources.push(...sourcesIn(family.moeSources(config, layer)));
    for (let expert = 0; expert < config.numExperts; expert++) {
      sources.push(...sourcesIn(family.expertSources(config, layer, expert)));
    }
  }
  return sources;
}

/** A tensor as the published checkpoint has it. */
export interface ExpectedTensor {
  /** As safetensors names it. */
  readonly dtype: "BF16" | "F32" | "F8_E4M3" | "U8";
  readonly shape: readonly number[];
}

/** Every tensor that a checkpoint of this config has in the published layout, by name. */
export function expectedTensors(config: ModelConfig): Map<string, ExpectedTensor> {
  const tensors = new Map<string, ExpectedTensor>();
  for (const { name, shape: ownShape, part, encoding } of expectedSources(config)) {
    const shape = part?.shape ?? ownShape;
    if (encoding === "MXFP4") {
      const { blocks, scales } = mxfp4Tensors(name, shape);
      tensors.set(blocks.name, { dtype: "U8", shape: blocks.shape });
      tensors.set(scales.name, { dtype: "U8", shape: scales.shape });
    } else if (encoding === "FP8") {
      const scales = fp8Scales(name, shape);
      tensors.set(name, { dtype: "F8_E4M3", shape });
      tensors.set(scales.name, { dtype: "F32", shape: scales.shape });
    } else {
      tensors.set(name, { dtype: encoding ?? "BF16", shape });
    }
  }
  return tensors;
}

/** The tensor sources anywhere within a group of them. */
export function* sourcesIn(group: object): Generator<TensorSource> {
  for (const value of Object.values(group)) {
    if (typeof value !== "object" || value === null) continue;
    if (isSource(value)) yield value;
    else yield* sourcesIn(value);
  }
}

function isSource(value: object): value is TensorSource {
  return "name" in value && "shape" in value;
}
