/**
 * GraniteMoE (granite-3.0 and 3.1, 1b-a400m and 3b-a800m): scores, embeddings, residuals and logits have multipliers
 * of their own, the softmax is over the chosen logits alone, and all experts of a layer stand in two tensors. Names and
 * defaults are those of Hugging Face's `GraniteMoeConfig` and `GraniteMoeForCausalLM`.
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
import { decoderSources, fusedExpert, tensor } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { attentionBias, headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 2048, rmsNormEps: 1e-6 }),
  ...headsFields(),
  attention_bias: flag(false),
  attention_multiplier: positive().default(1),
  embedding_multiplier: positive().default(1),
  residual_multiplier: positive().default(1),
  logits_scaling: positive().default(1),
  num_local_experts: experts(),
  intermediate_size: stepped(SIZE_STEP),
};

const block = (layer: number) => `model.layers.${layer}.block_sparse_moe`;

/** The GraniteMoE family. */
export const graniteMoe: ModelFamily = {
  modelType: "granitemoe",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 10000, yarn: true },
      quantizations: [],
      config: (fields, rope) => ({
        ...decoderConfig("granitemoe", fields),
        ...headsConfig(fields, rope, {
          ...attentionBias(fields),
          scale: fields.attention_multiplier,
        }),
        layers: everyLayer(fields, "moe"),
        gate: softmaxGate(true),
        numExperts: fields.num_local_experts,
        expertIntermediateSize: fields.intermediate_size,
        multipliers: {
          embedding: fields.embedding_multiplier,
          residual: fields.residual_multiplier,
          logits: 1 / fields.logits_scaling,
        },
      }),
    }),
  ...decoderSources,
  moeSources: ({ numExperts, hiddenSize }, layer) => ({
    gate: { weight: tensor(`${block(layer)}.router.layer.weight`, numExperts, hiddenSize) },
  }),
  expertSources: (config, layer, expert) =>
    fusedExpert(config, expert, {
      gateUp: `${block(layer)}.input_linear.weight`,
      down: `${block(layer)}.output_linear.weight`,
    }),
};
