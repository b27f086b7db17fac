/**
 * Qwen2-MoE (Qwen1.5-MoE-A2.7B, Qwen2-57B-A14B): biased q/k/v, softmax over all experts before top-k, a shared expert
 * behind a sigmoid gate. Names and defaults are those of Hugging Face's `Qwen2MoeConfig` and `Qwen2MoeForCausalLM`.
 */

import { decoderConfig, decoderFields, flag, stepped } from "./config-fields.ts";
import { decoderSources, ffn, mlpExpert, mlpGate, tensor } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";
import { sparseConfig, sparseFields } from "./sparse-layers.ts";

const fields = {
  ...decoderFields({ maxPositions: 32768, rmsNormEps: 1e-6 }),
  ...headsFields(16),
  ...sparseFields,
  qkv_bias: flag(true),
  shared_expert_intermediate_size: stepped(0),
};

/** The Qwen2-MoE family. */
export const qwen2Moe: ModelFamily = {
  modelType: "qwen2_moe",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => {
        const sharedWidth = fields.shared_expert_intermediate_size;
        return {
          ...decoderConfig("qwen2_moe", fields),
          ...sparseConfig(fields),
          ...headsConfig(fields, rope, { qkvBias: fields.qkv_bias }),
          ...(sharedWidth > 0 && {
            sharedExpert: { intermediateSize: sharedWidth, gated: true },
          }),
        };
      },
    }),
  ...decoderSources,
  moeSources: (config, layer) => {
    const prefix = `model.layers.${layer}.mlp`;
    const { sharedExpert, hiddenSize } = config;
    return {
      gate: mlpGate(config, layer),
      ...(sharedExpert && {
        shared: ffn(config, `${prefix}.shared_expert`, sharedExpert.intermediateSize),
        sharedGate: tensor(`${prefix}.shared_expert_gate.weight`, 1, hiddenSize),
      }),
    };
  },
  expertSources: mlpExpert,
};
