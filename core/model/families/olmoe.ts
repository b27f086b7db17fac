/**
 * OLMoE (OLMoE-1B-7B): RMSNorm of the whole query and key projections before they are split into heads, clamped
 * projections where clip_qkv says so, all layers MoE. Names and defaults are those of Hugging Face's `OlmoeConfig` and
 * `OlmoeForCausalLM`.
 */

import {
  SIZE_STEP,
  decoderConfig,
  decoderFields,
  everyLayer,
  experts,
  flag,
  positive,
  softmaxGate,
  stepped,
} from "./config-fields.ts";
import { decoderSources, mlpExpert, mlpGate } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { attentionBias, headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 4096, rmsNormEps: 1e-5 }),
  ...headsFields(),
  attention_bias: flag(false),
  clip_qkv: positive().optional(),
  num_experts: experts(),
  intermediate_size: stepped(SIZE_STEP),
  norm_topk_prob: flag(false),
};

/** The OLMoE family. */
export const olmoe: ModelFamily = {
  modelType: "olmoe",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => ({
        ...decoderConfig("olmoe", fields),
        ...headsConfig(fields, rope, {
          ...attentionBias(fields),
          qkNorm: "whole",
          ...(fields.clip_qkv !== undefined && { clipQkv: fields.clip_qkv }),
        }),
        layers: everyLayer(fields, "moe"),
        gate: softmaxGate(fields.norm_topk_prob),
        numExperts: fields.num_experts,
        expertIntermediateSize: fields.intermediate_size,
      }),
    }),
  ...decoderSources,
  moeSources: (config, layer) => ({ gate: mlpGate(config, layer) }),
  expertSources: mlpExpert,
};
