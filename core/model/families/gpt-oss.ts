/**
 * gpt-oss (20b, 120b): heads with sinks, layers that take turns in a window and without, biases everywhere, a clamped
 * gate and up with (up + 1), softmax over the chosen logits alone, and all experts of a layer in MXFP4 tensors whose gate
 * and up rows take turns. Names and defaults are those of Hugging Face's `GptOssConfig` and `GptOssForCausalLM`, which
 * re-saves plain floats with matrices [in, out].
 */

import {
  MAX_SIZE,
  SIZE_STEP,
  decoderConfig,
  decoderFields,
  everyLayer,
  experts,
  flag,
  integer,
  positive,
  softmaxGate,
  stepped,
} from "./config-fields.ts";
import { decoderSources, fusedBias, fusedExpert, orResaved, tensor } from "./decoder-sources.ts";
import { parseByRules } from "./family-config.ts";
import { attentionBias, headsConfig, headsFields } from "./heads-config.ts";
import type { ModelFamily } from "./model-family.ts";
import { slidingFields, slidingProblems, windowsOf } from "./sliding-layers.ts";

const fields = {
  ...decoderFields({ maxPositions: 131072, rmsNormEps: 1e-5 }),
  ...headsFields(8),
  head_dim: integer(1, MAX_SIZE).default(64),
  attention_bias: flag(true),
  ...slidingFields(128),
  num_local_experts: experts(),
  intermediate_size: stepped(SIZE_STEP),
  swiglu_alpha: positive().default(1.702),
  swiglu_limit: positive().default(7),
};

/** The class's default of `rope_scaling`. */
const ROPE_SCALING = {
  rope_type: "yarn",
  factor: 32,
  beta_fast: 32,
  beta_slow: 1,
  truncate: false,
  original_max_position_embeddings: 4096,
};

const block = (layer: number) => `model.layers.${layer}.mlp`;

/** The gpt-oss family. */
export const gptOss: ModelFamily = {
  modelType: "gpt_oss",
  parseConfig: (raw) =>
    parseByRules(raw, {
      fields,
      rope: { theta: 150000, yarn: true, whenAbsent: ROPE_SCALING },
      quantizations: ["mxfp4"],
      config: (fields, rope) => ({
        ...decoderConfig("gpt_oss", fields),
        ...headsConfig(fields, rope, {
          ...attentionBias(fields),
          sinks: true,
          windows: windowsOf(fields),
        }),
        layers: everyLayer(fields, "moe"),
        gate: { ...softmaxGate(true), bias: true },
        numExperts: fields.num_local_experts,
        expertIntermediateSize: fields.intermediate_size,
        activation: {
          kind: "clampedSwiglu",
          alpha: fields.swiglu_alpha,
          limit: fields.swiglu_limit,
        },
        expertBias: true,
      }),
      problems: slidingProblems,
    }),
  ...decoderSources,
  moeSources: ({ numExperts, hiddenSize }, layer) => ({
    gate: {
      weight: tensor(`${block(layer)}.router.weight`, numExperts, hiddenSize),
      bias: tensor(`${block(layer)}.router.bias`, numExperts),
    },
  }),
  expertSources: (config, layer, expert) => {
    const { expertIntermediateSize: width, hiddenSize } = config;
    const gateUp = `${block(layer)}.experts.gate_up_proj`;
    const down = `${block(layer)}.experts.down_proj`;
    const layout = { gateUp, down, interleaved: true } as const;
    const blocks = fusedExpert(config, expert, { ...layout, encoding: "MXFP4" });
    const floats = fusedExpert(config, expert, { ...layout, transposed: true });
    const bias = (first: number) =>
      fusedBias(config, expert, `${gateUp}_bias`, { count: width, of: 2 * width, first, step: 2 });
    const downRows = { count: hiddenSize, of: hiddenSize, first: 0, step: 1 };
    return {
      ...(config.quantization === "mxfp4" ? orResaved(blocks, floats) : floats),
      gateBias: bias(0),
      upBias: bias(1),
      downBias: fusedBias(config, expert, `${down}_bias`, downRows),
    };
  },
};
