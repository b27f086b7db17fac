/** The model families that the engine runs. */

import type { ModelConfig } from "./config.ts";
import type { ModelFamily, TensorSource } from "./model-family.ts";
import { qwen2Moe } from "./qwen2-moe.ts";

/** Every known family. */
export const modelFamilies: readonly ModelFamily[] = [qwen2Moe];

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

/** Name and shape of every tensor that a checkpoint of this config must have. */
export function expectedTensors(config: ModelConfig): Map<string, readonly number[]> {
  return new Map(expectedSources(config).map(({ name, shape }) => [name, shape]));
}

/** The tensor sources anywhere within a group of them. */
function* sourcesIn(group: object): Generator<TensorSource> {
  for (const value of Object.values(group)) {
    if (typeof value !== "object" || value === null) continue;
    if (isSource(value)) yield value;
    else yield* sourcesIn(value);
  }
}

function isSource(value: object): value is TensorSource {
  return "name" in value && "shape" in value;
}
