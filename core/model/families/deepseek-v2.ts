/**
 * DeepSeek-V2 (V2, V2-Lite, Coder-V2): latent attention, a softmax gate that may choose from the best groups of experts
 * alone, top-k weights that are either divided by their sum or scaled. Names and defaults are those of the model's own
 * `configuration_deepseek.py` and `modeling_deepseek.py`.
 */

import {
  decoderConfig,
  decoderFields,
  experts,
  flag,
  positive,
  softmaxGate,
  word,
} from "./config-fields.ts";
import { decoderSources } from "./decoder-sources.ts";
import { deepseekConfig, deepseekFields, deepseekSources } from "./deepseek-moe.ts";
import { parseByRules } from "./family-config.ts";
import { latentConfig, latentFields } from "./latent-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 2048, rmsNormEps: 1e-6 }),
  ...latentFields,
  ...deepseekFields(0),
  norm_topk_prob: flag(false),
  routed_scaling_factor: positive().default(1),
  scoring_func: word("softmax"),
  topk_method: word("greedy", "group_limited_greedy"),
  n_group: experts().default(1),
  topk_group: experts().default(1),
};

/** The DeepSeek-V2 family. */
export const deepseekV2: ModelFamily = {
  modelType: "deepseek_v2",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => {
        const normTopkProb = fields.norm_topk_prob && fields.num_experts_per_tok > 1;
        // Choosing from all of the groups is choosing from all experts.
        const grouped =
          fields.topk_method === "group_limited_greedy" && fields.topk_group !== fields.n_group;
        return {
          ...decoderConfig("deepseek_v2", fields),
          ...latentConfig(fields, rope),
          ...deepseekConfig(fields),
          gate: {
            ...softmaxGate(normTopkProb),
            scaling: normTopkProb ? 1 : fields.routed_scaling_factor,
            ...(grouped && {
              groups: {
                numGroups: fields.n_group,
                topGroups: fields.topk_group,
                rank: "highest" as const,
              },
            }),
          },
        };
      },
    }),
  ...decoderSources,
  ...deepseekSources,
};
