/**
 * Qwen3-MoE (Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder): RMSNorm of every head's query and key before RoPE, heads
 * whose width is a size of its own, no shared expert. Names and defaults are those of Hugging Face's `Qwen3MoeConfig`
 * and `Qwen3MoeForCausalLM`; the class leaves top-k weights as they are, published configs have them divided.
 */

import { decoderConfig, decoderFields, flag } from "./config-fields.ts";
import { decoderSources, mlpExpert, mlpGate } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { attentionBias, headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";
import { sparseConfig, sparseFields } from "./sparse-layers.ts";

const fields = {
  ...decoderFields({ maxPositions: 32768, rmsNormEps: 1e-6 }),
  ...headsFields(4),
  ...sparseFields,
  attention_bias: flag(false),
};

/** The Qwen3-MoE family. */
export const qwen3Moe: ModelFamily = {
  modelType: "qwen3_moe",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => ({
        ...decoderConfig("qwen3_moe", fields),
        ...sparseConfig(fields),
        ...headsConfig(fields, rope, { ...attentionBias(fields), qkNorm: "head" }),
      }),
    }),
  ...decoderSources,
  moeSources: (config, layer) => ({ gate: mlpGate(config, layer) }),
  expertSources: mlpExpert,
};
