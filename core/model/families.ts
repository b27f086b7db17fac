/** The model families that the engine runs. */

import type { ModelConfig } from "./config.ts";
import type { ModelFamily } from "./model-family.ts";
import { qwen2Moe } from "./qwen2-moe.ts";

/** Every known family. */
export const modelFamilies: readonly ModelFamily[] = [qwen2Moe];

/** The family of a config that one of the families has read. */
export function familyOf(config: ModelConfig): ModelFamily {
  const family = modelFamilies.find((family) => family.modelType === config.modelType);
  if (!family) throw new TypeError(`no model family for ${config.modelType}`);
  return family;
}

/** Name and shape of every tensor that a checkpoint of this config must have. */
export function expectedTensors(config: ModelConfig): Map<string, readonly number[]> {
  const family = familyOf(config);
  const { hiddenSize } = config;
  const shapes = new Map<string, readonly number[]>();
  const add = (name: string | undefined, shape: readonly number[]) => {
    if (name !== undefined) shapes.set(name, shape);
  };
  const addFfn = (names: { gate: string; up: string; down: string }, width: number) => {
    add(names.gate, [width, hiddenSize]);
    add(names.up, [width, hiddenSize]);
    add(names.down, [hiddenSize, width]);
  };

  const model = family.modelTensorNames(config);
  add(model.embedding, [config.vocabSize, hiddenSize]);
  add(model.finalNorm, [hiddenSize]);
  add(model.lmHead, [config.vocabSize, hiddenSize]);

  const qSize = config.numHeads * config.headDim;
  const kvSize = config.numKvHeads * config.headDim;
  for (const [layer, kind] of config.layers.entries()) {
    const attention = family.attentionTensorNames(config, layer);
    add(attention.inputNorm, [hiddenSize]);
    add(attention.qWeight, [qSize, hiddenSize]);
    add(attention.kWeight, [kvSize, hiddenSize]);
    add(attention.vWeight, [kvSize, hiddenSize]);
    add(attention.qBias, [qSize]);
    add(attention.kBias, [kvSize]);
    add(attention.vBias, [kvSize]);
    add(attention.oWeight, [hiddenSize, qSize]);
    add(attention.postAttentionNorm, [hiddenSize]);
    if (kind === "dense") {
      addFfn(family.denseTensorNames(layer), config.denseIntermediateSize);
      continue;
    }
    const moe = family.moeTensorNames(config, layer);
    add(moe.gate, [config.numExperts, hiddenSize]);
    if (moe.sharedExpert) addFfn(moe.sharedExpert, config.sharedExpertIntermediateSize);
    add(moe.sharedExpertGate, [1, hiddenSize]);
    for (let expert = 0; expert < config.numExperts; expert++) {
      addFfn(family.expertTensorNames(layer, expert), config.expertIntermediateSize);
    }
  }
  return shapes;
}
