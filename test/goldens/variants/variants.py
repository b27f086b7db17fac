"""The variants: options that are published, and that no golden of the ten families has."""

from dataclasses import dataclass
from typing import Callable

from reference import Model

COMMON = {
    "vocab_size": 192,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 2,
}

LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 40,
    "qk_nope_head_dim": 24,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_shared_experts": 1,
    "attention_bias": False,
}

DEEPSEEK_YARN = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}


@dataclass
class Variant:
    config: dict
    #: What could be forgotten -> how the model is without it: a change of config and weights in place.
    mutations: dict[str, Callable[[dict, dict], None]]
    dtype: str = "BF16"
    files: int = 1
    #: Experts lie in two tensors per layer, as transformers 5 can save them.
    fused: bool = False


def without(**changes):
    return lambda config, weights: config.update(changes)


def ungrouped(config, weights):
    config["topk_group"] = config["n_group"]


def other_edge_scales(config, weights):
    """Rows of partial blocks with another scale."""
    for name, values in weights.items():
        if name.endswith("down_proj.weight") and values.ndim == 2 and values.shape[0] > 128:
            values[128:] *= 1.5


def swap_gate_and_up(config, weights):
    for name, values in weights.items():
        if name.endswith("gate_up_proj"):
            half = values.shape[1] // 2
            weights[name] = values[:, list(range(half, 2 * half)) + list(range(half))]


def halves_instead_of_turns(config, weights):
    for name, values in list(weights.items()):
        if "gate_up_proj" in name:
            half = values.shape[-1] // 2
            order = [i // 2 + half * (i % 2) for i in range(2 * half)]
            weights[name] = values[..., order]


VARIANTS = {
    "qwen2_moe_mixed": Variant(
        COMMON
        | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "num_hidden_layers": 4,
            "intermediate_size": 80,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "mlp_only_layers": [3],
            "decoder_sparse_step": 2,
            "rope_theta": 1000000.0,
        },
        {"norm_topk_prob": without(norm_topk_prob=False)},
    ),
    "qwen3_moe_sharded": Variant(
        COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 24,
            "intermediate_size": 96,
            "moe_intermediate_size": 24,
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "norm_topk_prob": True,
            "mlp_only_layers": [],
            "decoder_sparse_step": 1,
            "tie_word_embeddings": True,
            "torch_dtype": "float16",
            "attention_bias": False,
        },
        {"norm_topk_prob": without(norm_topk_prob=False)},
        dtype="F16",
        files=3,
    ),
    "qwen3_moe_fused": Variant(
        COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "head_dim": 16,
            "intermediate_size": 96,
            "moe_intermediate_size": 24,
            "num_experts": 8,
            "norm_topk_prob": False,
            "mlp_only_layers": [0],
            "decoder_sparse_step": 1,
            "attention_bias": False,
        },
        {"norm_topk_prob": without(norm_topk_prob=True), "the order of gate and up": swap_gate_and_up},
        fused=True,
    ),
    "mixtral_window": Variant(
        COMMON
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "intermediate_size": 32,
            "num_local_experts": 8,
            "sliding_window": 8,
            "rms_norm_eps": 1e-5,
        },
        {
            "sliding_window": without(sliding_window=None),
            "a window without the query's own position": without(sliding_window=7),
            "a window beside the query's own position": without(sliding_window=9),
        },
    ),
    "olmoe_clip": Variant(
        COMMON
        | {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "intermediate_size": 24,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "clip_qkv": 0.8,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
        },
        {"clip_qkv": without(clip_qkv=None), "norm_topk_prob": without(norm_topk_prob=False)},
    ),
    "granitemoe_untied": Variant(
        COMMON
        | {
            "architectures": ["GraniteMoeForCausalLM"],
            "model_type": "granitemoe",
            "num_attention_heads": 8,
            "intermediate_size": 24,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "rope_theta": 10000000.0,
            "embedding_multiplier": 3.0,
            "logits_scaling": 0.5,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.2,
            "attention_bias": False,
        },
        {
            "embedding_multiplier": without(embedding_multiplier=1.0),
            "logits_scaling": without(logits_scaling=1.0),
            "residual_multiplier": without(residual_multiplier=1.0),
            "attention_multiplier": without(attention_multiplier=8**-0.5),
            "rope_theta": without(rope_theta=10000.0),
        },
    ),
    "deepseek_v2_group": Variant(
        COMMON
        | LATENT
        | {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "vocab_size": 96,
            "num_hidden_layers": 3,
            "intermediate_size": 40,
            "moe_intermediate_size": 16,
            "n_routed_experts": 16,
            "num_experts_per_tok": 3,
            "scoring_func": "softmax",
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 16.0,
            "rope_scaling": DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
        },
        {
            "groups": ungrouped,
            "routed_scaling_factor": without(routed_scaling_factor=1.0),
            "mscale": without(rope_scaling=DEEPSEEK_YARN | {"mscale": 0.707, "mscale_all_dim": 0}),
        },
    ),
    "deepseek_v3_fp8": Variant(
        COMMON
        | LATENT
        | {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "vocab_size": 160,
            "hidden_size": 136,
            "intermediate_size": 136,
            "moe_intermediate_size": 40,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rope_scaling": DEEPSEEK_YARN,
            "quantization_config": {
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [128, 128],
            },
        },
        {
            "groups": ungrouped,
            "routed_scaling_factor": without(routed_scaling_factor=1.0),
            "the scales of edge blocks": other_edge_scales,
        },
    ),
    "gpt_oss_bf16": Variant(
        COMMON
        | {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "head_dim": 24,
            "intermediate_size": 40,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "rope_theta": 150000.0,
            "rms_norm_eps": 1e-5,
            "attention_bias": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "swiglu_limit": 1.5,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 16,
            },
        },
        {
            "sliding_window": without(sliding_window=None),
            "swiglu_limit": without(swiglu_limit=7.0),
            "rows of gate and up in turns": halves_instead_of_turns,
        },
    ),
}


def tensor_shapes(config, fused=False):
    """Name -> shape of every tensor that a published checkpoint of the config has."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = (hidden,)
        shapes |= attention_shapes(config, prefix + "self_attn.")
        shapes[prefix + "post_attention_layernorm.weight"] = (hidden,)
        shapes |= ffn_shapes(config, layer, prefix, fused)
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return shapes


def attention_shapes(config, prefix):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    kind = config["model_type"]
    if "kv_lora_rank" in config:
        rank, query_rank = config["kv_lora_rank"], config["q_lora_rank"]
        nope, turned, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        return {
            prefix + "q_a_proj.weight": (query_rank, hidden),
            prefix + "q_a_layernorm.weight": (query_rank,),
            prefix + "q_b_proj.weight": (heads * (nope + turned), query_rank),
            prefix + "kv_a_proj_with_mqa.weight": (rank + turned, hidden),
            prefix + "kv_a_layernorm.weight": (rank,),
            prefix + "kv_b_proj.weight": (heads * (nope + value), rank),
            prefix + "o_proj.weight": (hidden, heads * value),
        }
    width = config.get("head_dim", hidden // heads)
    rows = {"q_proj": heads * width, "k_proj": config["num_key_value_heads"] * width}
    rows["v_proj"] = rows["k_proj"]
    shapes = {f"{prefix}{name}.weight": (count, hidden) for name, count in rows.items()}
    shapes[prefix + "o_proj.weight"] = (hidden, heads * width)
    if kind in ("qwen2_moe", "gpt_oss"):
        shapes |= {f"{prefix}{name}.bias": (count,) for name, count in rows.items()}
    if kind == "gpt_oss":
        shapes |= {prefix + "o_proj.bias": (hidden,), prefix + "sinks": (heads,)}
    if kind == "qwen3_moe":
        shapes |= {prefix + "q_norm.weight": (width,), prefix + "k_norm.weight": (width,)}
    if kind == "olmoe":
        shapes |= {prefix + "q_norm.weight": (rows["q_proj"],), prefix + "k_norm.weight": (rows["k_proj"],)}
    return shapes


def swiglu_shapes(prefix, hidden, width):
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }


def ffn_shapes(config, layer, prefix, fused):
    hidden, kind = config["hidden_size"], config["model_type"]
    if not Model(config, {}).is_moe(layer):
        return swiglu_shapes(prefix + "mlp.", hidden, config["intermediate_size"])
    count = next(config[n] for n in ("num_experts", "num_local_experts", "n_routed_experts") if n in config)
    width = config.get("moe_intermediate_size", config["intermediate_size"])
    if kind == "granitemoe":
        return {
            prefix + "block_sparse_moe.router.layer.weight": (count, hidden),
            prefix + "block_sparse_moe.input_linear.weight": (count, 2 * width, hidden),
            prefix + "block_sparse_moe.output_linear.weight": (count, hidden, width),
        }
    if kind == "gpt_oss":
        return {
            prefix + "mlp.router.weight": (count, hidden),
            prefix + "mlp.router.bias": (count,),
            prefix + "mlp.experts.gate_up_proj": (count, hidden, 2 * width),
            prefix + "mlp.experts.gate_up_proj_bias": (count, 2 * width),
            prefix + "mlp.experts.down_proj": (count, width, hidden),
            prefix + "mlp.experts.down_proj_bias": (count, hidden),
        }
    if kind == "mixtral":
        shapes = {prefix + "block_sparse_moe.gate.weight": (count, hidden)}
        for expert in range(count):
            at = f"{prefix}block_sparse_moe.experts.{expert}."
            shapes |= {at + "w1.weight": (width, hidden), at + "w3.weight": (width, hidden)}
            shapes[at + "w2.weight"] = (hidden, width)
        return shapes
    shapes = {prefix + "mlp.gate.weight": (count, hidden)}
    if fused:
        shapes[prefix + "mlp.experts.gate_up_proj"] = (count, 2 * width, hidden)
        shapes[prefix + "mlp.experts.down_proj"] = (count, hidden, width)
    else:
        for expert in range(count):
            shapes |= swiglu_shapes(f"{prefix}mlp.experts.{expert}.", hidden, width)
    if kind == "qwen2_moe":
        shapes |= swiglu_shapes(prefix + "mlp.shared_expert.", hidden, config["shared_expert_intermediate_size"])
        shapes[prefix + "mlp.shared_expert_gate.weight"] = (1, hidden)
    if kind == "deepseek_v3":
        shapes[prefix + "mlp.gate.e_score_correction_bias"] = (count,)
    if kind.startswith("deepseek"):
        shapes |= swiglu_shapes(prefix + "mlp.shared_experts.", hidden, width * config["n_shared_experts"])
    return shapes
