/**
 * Mixtral (8x7B, 8x22B): plain attention, all layers MoE, top-k weights always divided by their sum, an expert's
 * projections named w1 (gate), w3 (up) and w2 (down). Names and defaults are those of Hugging Face's `MixtralConfig`
 * and `MixtralForCausalLM`.
 */

import {
  MAX_SIZE,
  SIZE_STEP,
  decoderConfig,
  decoderFields,
  everyLayer,
  experts,
  integer,
  softmaxGate,
  stepped,
} from "./config-fields.ts";
import { decoderSources, ffn, separateExpert, tensor } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";

const fields = {
  ...decoderFields({ maxPositions: 131072, rmsNormEps: 1e-5 }),
  ...headsFields(8),
  sliding_window: integer(1, MAX_SIZE).optional(),
  num_local_experts: experts(),
  intermediate_size: stepped(SIZE_STEP),
};

/** The Mixtral family. */
export const mixtral: ModelFamily = {
  modelType: "mixtral",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 1e6, yarn: true },
      quantizations: ["fp8"],
      config: (fields, rope) => ({
        ...decoderConfig("mixtral", fields),
        ...headsConfig(fields, rope, { windows: everyLayer(fields, fields.sliding_window) }),
        layers: everyLayer(fields, "moe"),
        gate: softmaxGate(true),
        numExperts: fields.num_local_experts,
        expertIntermediateSize: fields.intermediate_size,
      }),
    }),
  ...decoderSources,
  moeSources: ({ numExperts, hiddenSize }, layer) => {
    const gate = (block: string) =>
      tensor(`model.layers.${layer}.${block}.gate.weight`, numExperts, hiddenSize);
    return { gate: { weight: { ...gate("block_sparse_moe"), resaved: gate("mlp") } } };
  },
  expertSources: (config, layer, expert) => {
    const prefix = `model.layers.${layer}.block_sparse_moe.experts.${expert}`;
    const published = ffn(config, prefix, config.expertIntermediateSize, ["w1", "w3", "w2"]);
    return separateExpert(config, layer, expert, published);
  },
};
