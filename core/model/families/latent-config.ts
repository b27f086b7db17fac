/** Multi-head latent attention in `config.json` (DeepSeek-V2, arXiv 2405.04434). */

import type { z } from "zod";

import { type DecoderFields, SIZE_STEP, stepped } from "./config-fields.ts";
import type { ModelConfig } from "../config.ts";
import type { RopeFields } from "./rope-fields.ts";

/** Columns of a head are read as vec4. */
const COLUMN_STEP = 4;
/** Both small norms have an epsilon of their own. */
const NORM_EPS = 1e-6;

/** Fields of latent attention. */
export const latentFields = {
  /** Null projects the query at once. */
  q_lora_rank: stepped(SIZE_STEP).nullable().default(1536),
  kv_lora_rank: stepped(SIZE_STEP),
  qk_nope_head_dim: stepped(COLUMN_STEP, COLUMN_STEP),
  qk_rope_head_dim: stepped(SIZE_STEP),
  v_head_dim: stepped(COLUMN_STEP, COLUMN_STEP),
};

/** Latent attention and its RoPE, which turns pairs of neighbouring columns unless `interleaved` is false. */
export function latentConfig(
  fields: DecoderFields & z.output<z.ZodObject<typeof latentFields>>,
  { theta, yarn, magnitude, scoreFactor }: RopeFields,
  interleaved = true,
): Pick<ModelConfig, "attention" | "rope"> {
  const { qk_nope_head_dim: nopeDim, qk_rope_head_dim: ropeDim } = fields;
  return {
    attention: {
      kind: "latent",
      numHeads: fields.num_attention_heads,
      ...(fields.q_lora_rank !== null && { qLoraRank: fields.q_lora_rank }),
      kvLoraRank: fields.kv_lora_rank,
      nopeDim,
      ropeDim,
      valueDim: fields.v_head_dim,
      scale: (nopeDim + ropeDim) ** -0.5 * scoreFactor,
      normEps: NORM_EPS,
    },
    rope: { dim: ropeDim, theta, interleaved, ...(yarn && { yarn }), magnitude },
  };
}
