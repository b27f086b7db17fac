/**
 * DeepSeekMoE (deepseek-moe-16b): plain attention, shared experts without a gate of their own, a dense layer at the
 * start. Names and defaults are those of the model's own `configuration_deepseek.py` and `modeling_deepseek.py`.
 */

import { decoderConfig, decoderFields, flag, softmaxGate, word } from "./config-fields.ts";
import { decoderSources } from "./decoder-sources.ts";
import { deepseekConfig, deepseekFields, deepseekSources } from "./deepseek-moe.ts";
import { parseByRules } from "./family-config.ts";
import { attentionBias, headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 2048, rmsNormEps: 1e-6 }),
  ...headsFields(),
  ...deepseekFields(0),
  attention_bias: flag(false),
  norm_topk_prob: flag(false),
  scoring_func: word("softmax"),
};

/** The DeepSeekMoE family. */
export const deepseek: ModelFamily = {
  modelType: "deepseek",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: false },
      quantizations: ["fp8"],
      config: (fields, rope) => ({
        ...decoderConfig("deepseek", fields),
        ...headsConfig(fields, rope, attentionBias(fields)),
        ...deepseekConfig(fields),
        gate: softmaxGate(fields.norm_topk_prob && fields.num_experts_per_tok > 1),
      }),
    }),
  ...decoderSources,
  ...deepseekSources,
};
