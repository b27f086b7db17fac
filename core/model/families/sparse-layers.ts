/** Qwen's MoE layers in `config.json`: experts, and where the dense layers stand. */

import { z } from "zod";

import {
  type DecoderFields,
  SIZE_STEP,
  experts,
  flag,
  layers,
  softmaxGate,
  stepped,
} from "./config-fields.ts";
import type { LayerKind, ModelConfig } from "../config.ts";

/** Fields of Qwen's MoE families: experts, and where the dense layers stand. */
export const sparseFields = {
  num_experts: experts(),
  moe_intermediate_size: stepped(SIZE_STEP),
  intermediate_size: stepped(SIZE_STEP),
  norm_topk_prob: flag(false),
  decoder_sparse_step: layers(1).default(1),
  mlp_only_layers: z.array(z.int(), { error: "a list of layer indices" }).default([]),
};

/** What `sparseFields` say of layers and experts; a layer is dense by its index, or off the sparse step. */
export function sparseConfig(fields: DecoderFields & z.output<z.ZodObject<typeof sparseFields>>) {
  const kinds = Array.from({ length: fields.num_hidden_layers }, (_, layer): LayerKind => {
    const sparse = (layer + 1) % fields.decoder_sparse_step === 0;
    return sparse && !fields.mlp_only_layers.includes(layer) ? "moe" : "dense";
  });
  return {
    layers: kinds,
    gate: softmaxGate(fields.norm_topk_prob),
    numExperts: fields.num_experts,
    expertIntermediateSize: fields.moe_intermediate_size,
    denseIntermediateSize: kinds.includes("dense") ? fields.intermediate_size : 0,
  } satisfies Partial<ModelConfig>;
}
