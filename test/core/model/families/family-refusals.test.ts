// Options that change what a model computes and that the engine does not compute: refused by name, for every family.
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";

import { ModelConfigError } from "../../../../core/model/config-error.ts";
import type { JsonObject } from "../../../../core/model/checkpoint/json-file.ts";
import { parseModelConfig, readRawConfig } from "../../../../core/model/load-config.ts";

const YARN = { type: "yarn", factor: 40 };
const FP8 = { quant_method: "fp8", fmt: "e4m3", weight_block_size: [128, 128] };

const refused: [family: string, changes: JsonObject, name: string][] = [
  ["deepseek", { rope_scaling: YARN }, "rope_scaling.type"],
  ["deepseek", { scoring_func: "sigmoid" }, "scoring_func"],
  ["deepseek", { n_routed_experts: null }, "n_routed_experts"],
  ["deepseek", { rope_scaling: { type: "dynamic", factor: 2 } }, "rope_scaling.type"],
  ["deepseek_v2", { attention_bias: true }, "attention_bias"],
  ["deepseek_v2", { topk_method: "noaux_tc" }, "topk_method"],
  ["deepseek_v2", { scoring_func: "sigmoid" }, "scoring_func"],
  ["deepseek_v2", { rope_scaling: { ...YARN, mscale: 0.7 } }, "rope_scaling.mscale"],
  ["deepseek_v2", { rope_scaling: { ...YARN, mscale_all_dim: 0.7 } }, "rope_scaling.mscale"],
  ["deepseek_v2", { rope_scaling: { type: "yarn" } }, "rope_scaling.factor"],
  ["deepseek_v2", { rope_scaling: { ...YARN, rope_type: "default" } }, "rope_scaling.type"],
  ["deepseek_v2", { rope_scaling: { ...YARN, long_factor: [1] } }, "rope_scaling.long_factor"],
  ["deepseek_v2", { rope_parameters: { ...YARN, factor: 4 }, rope_scaling: YARN }, "rope_scaling"],
  ["deepseek_v2", { v_head_dim: 18 }, "v_head_dim"],
  ["deepseek_v2", { kv_lora_rank: 12 }, "kv_lora_rank"],
  ["deepseek_v2", { topk_method: "group_limited_greedy", n_group: 3 }, "n_group"],
  ["deepseek_v2", { topk_method: "group_limited_greedy", n_group: 4, topk_group: 5 }, "topk_group"],
  ["deepseek_v2", { moe_layer_freq: 0 }, "moe_layer_freq"],
  ["deepseek_v3", { scoring_func: "softmax" }, "scoring_func"],
  ["deepseek_v3", { topk_method: "greedy" }, "topk_method"],
  ["deepseek_v3", { n_group: 16, topk_group: 8 }, "n_group"],
  ["deepseek_v3", { topk_group: 2, n_group: 8, num_experts_per_tok: 5 }, "num_experts_per_tok"],
  ["deepseek_v3", { model_type: "deepseek_v32" }, "model_type"],
  ["deepseek_v3", { quantization_config: { ...FP8, quant_method: "awq" } }, "quantization_config"],
  [
    "deepseek_v3",
    { quantization_config: { ...FP8, weight_block_size: [64, 64] } },
    "quantization_config",
  ],
  ["deepseek_v3", { quantization_config: { quant_method: "fp8" } }, "quantization_config"],
  ["deepseek_v3", { quantization_config: { ...FP8, fmt: "e5m2" } }, "quantization_config"],
  [
    "deepseek_v3",
    { quantization_config: { quant_method: "compressed-tensors" } },
    "quantization_config",
  ],
  ["deepseek_v3", { quantization_config: { quant_method: "mxfp4" } }, "quantization_config"],
  ["gpt_oss", { quantization_config: FP8 }, "quantization_config"],
  ["gpt_oss", { layer_types: ["full_attention"] }, "layer_types"],
  [
    "gpt_oss",
    { layer_types: ["chunked_attention", "full_attention", "full_attention"] },
    "layer_types.0",
  ],
  ["gpt_oss", { sliding_window: null }, "sliding_window"],
  ["gpt_oss", { intermediate_size: 40 }, "intermediate_size"],
  ["gpt_oss", { swiglu_limit: 0 }, "swiglu_limit"],
  ["gpt_oss", { hidden_act: "gelu" }, "hidden_act"],
  ["granitemoe", { quantization_config: FP8 }, "quantization_config"],
  ["granitemoe", { position_embedding_type: "nope" }, "position_embedding_type"],
  ["granitemoe", { logits_scaling: 0 }, "logits_scaling"],
  ["granitemoe", { model_type: "granitemoehybrid" }, "model_type"],
  ["mixtral", { attention_bias: true }, "attention_bias"],
  ["mixtral", { num_key_value_heads: 3 }, "num_key_value_heads"],
  ["mixtral", { rope_scaling: { rope_type: "llama3", factor: 8 } }, "rope_scaling.rope_type"],
  ["mixtral", { final_logit_softcapping: 30 }, "final_logit_softcapping"],
  ["olmoe", { clip_qkv: -1 }, "clip_qkv"],
  ["olmoe", { partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
  ["qwen2_moe", { attention_bias: true }, "attention_bias"],
  ["qwen3_moe", { use_sliding_window: true }, "use_sliding_window"],
  ["qwen3_moe", { dual_chunk_attention_config: {} }, "dual_chunk_attention_config"],
  ["qwen3_moe", { attn_logit_softcapping: 50 }, "attn_logit_softcapping"],
  ["qwen3_moe", { clip_qkv: 8 }, "clip_qkv"],
  [
    "qwen3_moe",
    { rope_parameters: { full_attention: { rope_type: "default" } } },
    "rope_parameters.full_attention",
  ],
  ["qwen3_moe", { rope_scaling: "yarn" }, "rope_scaling"],
  ["qwen3_moe", { mlp_layer_types: ["dense", "sparse"] }, "mlp_layer_types"],
  ["qwen3_moe", { use_qk_norm: false }, "use_qk_norm"],
  ["mixtral", { use_qk_norm: true }, "use_qk_norm"],
  ["mixtral", { no_rope_layers: [1, 0] }, "no_rope_layers"],
  ["mixtral", { attention_chunk_size: 8192 }, "attention_chunk_size"],
  ["mixtral", { rotary_pct: 0.25 }, "rotary_pct"],
  ["mixtral", { quantization: { group_size: 64, bits: 4 } }, "quantization"],
];

test("options of other families that say what the model does anyway are taken", async () => {
  const raw = await readRawConfig(join(import.meta.dirname, "../../../goldens/deepseek_v3"));
  const same = {
    attention_chunk_size: null,
    mlp_layer_types: ["dense", "sparse", "sparse"],
    no_rope_layers: [1, 1, 1],
    rotary_pct: 1,
    use_qk_norm: false,
  };
  const config = parseModelConfig(raw, "config.json");
  assert.deepEqual(parseModelConfig({ ...raw, ...same }, "config.json"), config);
});

for (const [family, changes, name] of refused) {
  test(`${family} with ${JSON.stringify(changes)} is refused by name`, async () => {
    const raw = {
      ...(await readRawConfig(join(import.meta.dirname, "../../../goldens", family))),
      ...changes,
    };
    assert.throws(
      () => parseModelConfig(raw, "config.json"),
      (error) => {
        assert.ok(error instanceof ModelConfigError, String(error));
        assert.deepEqual([...new Set(error.problems.map((problem) => problem.name))], [name]);
        assert.ok(error.message.startsWith(`config.json: ${name} is `), error.message);
        return true;
      },
    );
  });
}
