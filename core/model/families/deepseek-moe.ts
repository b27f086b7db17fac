/** What DeepSeek's families share: shared experts, dense layers at the start, and their names. */

import { z } from "zod";

import {
  type DecoderFields,
  SIZE_STEP,
  experts,
  integer,
  layers,
  stepped,
} from "./config-fields.ts";
import type { LayerKind, ModelConfig } from "../config.ts";
import { ffn, mlpExpert, mlpGate } from "./decoder-sources.ts";
import type { ModelFamily } from "./model-family.ts";

/** Fields of DeepSeek's MoE layers; `firstDense` is the class's default. */
export function deepseekFields(firstDense: number) {
  return {
    n_routed_experts: experts(),
    n_shared_experts: integer(0, 1024).default(0),
    moe_intermediate_size: stepped(SIZE_STEP),
    intermediate_size: stepped(SIZE_STEP),
    first_k_dense_replace: layers(0).default(firstDense),
    moe_layer_freq: layers(1).default(1),
  };
}

/** What `deepseekFields` say of layers and experts. */
export function deepseekConfig(
  fields: DecoderFields & z.output<z.ZodObject<ReturnType<typeof deepseekFields>>>,
) {
  const kinds = Array.from({ length: fields.num_hidden_layers }, (_, layer): LayerKind => {
    const first = layer < fields.first_k_dense_replace;
    return first || layer % fields.moe_layer_freq !== 0 ? "dense" : "moe";
  });
  const { n_shared_experts: numShared, moe_intermediate_size: width } = fields;
  return {
    layers: kinds,
    numExperts: fields.n_routed_experts,
    expertIntermediateSize: width,
    // One FFN as wide as all shared experts together.
    ...(numShared > 0 && { sharedExpert: { intermediateSize: numShared * width, gated: false } }),
    denseIntermediateSize: kinds.includes("dense") ? fields.intermediate_size : 0,
  } satisfies Partial<ModelConfig>;
}

/** Sources of DeepSeek's MoE layers. */
export const deepseekSources: Pick<ModelFamily, "moeSources" | "expertSources"> = {
  moeSources: (config, layer) => {
    const { sharedExpert } = config;
    const prefix = `model.layers.${layer}.mlp`;
    return {
      gate: mlpGate(config, layer),
      ...(sharedExpert && {
        shared: ffn(config, `${prefix}.shared_experts`, sharedExpert.intermediateSize),
      }),
    };
  },
  expertSources: mlpExpert,
};
