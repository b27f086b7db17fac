/** Attention with keys and values per head in `config.json`. */

import type { z } from "zod";

import { type DecoderFields, MAX_HEADS, MAX_SIZE, integer } from "./config-fields.ts";
import type { HeadsAttention, ModelConfig } from "../config.ts";
import type { RopeFields } from "./rope-fields.ts";

/** Fields of attention with keys and values per head; `numKvHeads` is the class's default, null as many as heads. */
export function headsFields(numKvHeads: number | null = null) {
  return {
    num_key_value_heads: integer(1, MAX_HEADS).nullable().default(numKvHeads),
    /** hidden_size / num_attention_heads where it is absent. */
    head_dim: integer(1, MAX_SIZE).optional(),
  };
}

/** What `headsFields` read. */
type HeadsFields = DecoderFields & z.output<z.ZodObject<ReturnType<typeof headsFields>>>;

/** Plain attention of heads that RoPE turns whole; `options` is what the family adds. */
export function headsConfig(
  fields: HeadsFields,
  rope: RopeFields,
  options: Partial<HeadsAttention> = {},
): Pick<ModelConfig, "attention" | "rope"> {
  const { theta, yarn, magnitude } = rope;
  const numHeads = fields.num_attention_heads;
  const headDim = fields.head_dim ?? Math.floor(fields.hidden_size / numHeads);
  return {
    attention: {
      kind: "heads",
      numHeads,
      numKvHeads: fields.num_key_value_heads ?? numHeads,
      headDim,
      scale: headDim ** -0.5,
      qkvBias: false,
      outputBias: false,
      qkNorm: "none",
      sinks: false,
      windows: Array.from({ length: fields.num_hidden_layers }, () => undefined),
      ...options,
    },
    rope: { dim: headDim, theta, interleaved: false, ...(yarn && { yarn }), magnitude },
  };
}

/** Biases of all four projections, as `attention_bias` says. */
export function attentionBias({ attention_bias }: { readonly attention_bias: boolean }) {
  return { qkvBias: attention_bias, outputBias: attention_bias };
}
