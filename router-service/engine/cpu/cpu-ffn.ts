/** What stands after a layer's attention on the CPU, as far as it is no routed expert. */

import { sigmoid } from "../../../core/cpu/activation.ts";
import { ffn } from "../../../core/cpu/ffn.ts";
import { chooseExperts } from "../../../core/cpu/gate.ts";
import { linear } from "../../../core/cpu/operations.ts";
import type { ExpertWeights } from "../../../core/expert-device.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import type { LayerFfn, SharedExpertWeights } from "../../../core/model/checkpoint/weights.ts";
import type { CpuLoader } from "./cpu-weights.ts";
import type { Routing } from "../run-experts.ts";

/** An FFN over hidden states [numTokens, hiddenSize]: same shape. */
export type CpuFfn = (normed: Float32Array) => Float32Array;

/** A layer's FFN; what an MoE layer's routed experts give is added to that of its shared expert. */
export type CpuLayerFfn =
  | { readonly kind: "dense"; readonly dense: CpuFfn }
  | {
      readonly kind: "moe";
      readonly route: (normed: Float32Array) => Routing;
      readonly shared?: CpuFfn;
    };

/** Loads a layer's gate and its FFNs beside the routed experts. Throws as `CpuLoader`. */
export function loadLayerFfn(config: ModelConfig, weights: LayerFfn, load: CpuLoader): CpuLayerFfn {
  if (weights.kind === "dense") {
    return { kind: "dense", dense: loadFfn(config, "", weights.dense, load) };
  }
  // The gate stays in f32 whatever the cluster's dtype: it is small, and its rounding would move tokens.
  const gate = load.vector("gate", weights.gate.weight);
  const bias = weights.gate.bias && load.vector("gate bias", weights.gate.bias);
  const correction = weights.correction && load.vector("gate correction", weights.correction);
  const { numExperts, numExpertsPerToken: topK } = config;
  const options = { ...config.gate, numExperts, topK };
  return {
    kind: "moe",
    route: (normed) => {
      const logits = linear(normed, gate, config.hiddenSize, bias);
      return { ...chooseExperts(logits, options, correction), topK };
    },
    shared: weights.shared && loadShared(config, weights.shared, load),
  };
}

function loadShared(config: ModelConfig, weights: SharedExpertWeights, load: CpuLoader): CpuFfn {
  const expert = loadFfn(config, "shared ", weights.expert, load);
  const gate = weights.gate && load.vector("shared gate", weights.gate);
  if (gate === undefined) return expert;
  const { hiddenSize } = config;
  return (normed) => {
    const gates = linear(normed, gate, hiddenSize);
    return expert(normed).map((value, i) => sigmoid(gates[Math.floor(i / hiddenSize)]) * value);
  };
}

function loadFfn(config: ModelConfig, at: string, of: ExpertWeights, load: CpuLoader): CpuFfn {
  const gateUp = load.matrix(`${at}gate and up`, of.gate, of.up);
  const down = load.matrix(`${at}down`, of.down);
  return (normed) => ffn(normed, gateUp, down, config.hiddenSize, config.activation);
}
