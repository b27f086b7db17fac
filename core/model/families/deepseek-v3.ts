/**
 * DeepSeek-V3 (V3, R1, Kimi-K2): latent attention, a sigmoid gate that chooses by a corrected score from the best groups
 * and weighs by the score itself, FP8 checkpoints, and layers that only draft behind the last one. Names and defaults
 * are those of Hugging Face's `DeepseekV3Config` and of the model's own `modeling_deepseek.py`. Kimi-K2 has both files
 * unchanged under a `model_type` of its own.
 */

import { decoderConfig, decoderFields, experts, flag, positive, word } from "./config-fields.ts";
import { decoderSources } from "./decoder-sources.ts";
import { deepseekConfig, deepseekFields, deepseekSources } from "./deepseek-moe.ts";
import { parseByRules } from "./family-config.ts";
import { latentConfig, latentFields } from "./latent-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 4096, rmsNormEps: 1e-6 }),
  ...latentFields,
  ...deepseekFields(3),
  rope_interleave: flag(true),
  norm_topk_prob: flag(true),
  routed_scaling_factor: positive().default(2.5),
  scoring_func: word("sigmoid"),
  topk_method: word("noaux_tc"),
  n_group: experts().default(8),
  topk_group: experts().default(4),
};

/** The DeepSeek-V3 family. */
export const deepseekV3: ModelFamily = {
  modelType: "deepseek_v3",
  aliases: ["kimi_k2"],
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => ({
        ...decoderConfig("deepseek_v3", fields),
        ...latentConfig(fields, rope, fields.rope_interleave),
        ...deepseekConfig(fields),
        gate: {
          score: "sigmoid",
          bias: false,
          correction: true,
          // Choosing from all of the groups is choosing from all experts.
          ...(fields.topk_group !== fields.n_group && {
            groups: {
              numGroups: fields.n_group,
              topGroups: fields.topk_group,
              rank: "sumOfTwo",
            },
          }),
          normTopkProb: fields.norm_topk_prob,
          scaling: fields.routed_scaling_factor,
        },
      }),
    }),
  ...decoderSources,
  ...deepseekSources,
  moeSources: (config, layer) => ({
    ...deepseekSources.moeSources(config, layer),
    correction: {
      name: `model.layers.${layer}.mlp.gate.e_score_correction_bias`,
      shape: [config.numExperts],
      encoding: "F32",
    },
  }),
  isExtra: ({ numLayers }, name) => {
    const layer = /^model\.layers\.(\d+)\./.exec(name)?.[1];
    return layer !== undefined && Number(layer) >= numLayers;
  },
};
