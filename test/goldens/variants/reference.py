"""A forward pass of every model family in float64, written from the papers and configs; needs numpy and nothing else.

It shares no code with the engine: it judges it. `python generate.py --check` judges it in turn, by the goldens of the
ten families that other implementations made.
"""

import json
import math
from pathlib import Path

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def e4m3_values():
    """The value of every byte of FP8 E4M3 (OCP, "fn"): no infinities, NaN at 0x7f and 0xff."""
    bytes_ = np.arange(256)
    exponent, mantissa = (bytes_ >> 3) & 15, bytes_ & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(bytes_ & 127) == 127] = np.nan
    return np.where(bytes_ >= 128, -magnitude, magnitude)


E4M3 = e4m3_values()


def decode(dtype, raw, shape):
    """Little-endian bytes of a safetensors dtype as float64; integers and raw bytes as integers."""
    if dtype == "BF16":
        values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    elif dtype == "F8_E4M3":
        values = E4M3[np.frombuffer(raw, np.uint8)]
    elif dtype in ("F16", "F32"):
        values = np.frombuffer(raw, {"F16": "<f2", "F32": "<f4"}[dtype]).astype(np.float64)
    else:
        values = np.frombuffer(raw, {"U8": "u1", "I32": "<i4", "I64": "<i8"}[dtype])
    return values.reshape(shape)


def read_safetensors(path):
    """Tensor name -> (dtype, values)."""
    raw = Path(path).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    entries.pop("__metadata__", None)
    tensors = {}
    for name, entry in entries.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = (entry["dtype"], decode(entry["dtype"], raw[begin:end], entry["shape"]))
    return tensors


def spread_blocks(scales, shape, block=128):
    """A scale per block of a matrix as a scale per value; blocks at the edges may be partial."""
    return np.repeat(np.repeat(scales, block, 0), block, 1)[: shape[0], : shape[1]]


def read_checkpoint(directory):
    """A checkpoint's config, and its weights as float64 with quantised ones multiplied out."""
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text())
    tensors = {}
    for file in sorted(directory.glob("model*.safetensors")):
        tensors |= read_safetensors(file)
    weights = {}
    for name, (dtype, values) in tensors.items():
        if name.endswith("_blocks"):
            nibbles = np.stack([values & 15, values >> 4], -1).reshape(*values.shape[:-1], -1)
            signed = np.where(nibbles & 8, -1, 1) * E2M1[nibbles & 7]
            scales = 2.0 ** (tensors[name[:-7] + "_scales"][1].astype(np.float64) - 127)
            matrices = (signed * scales[..., None]).reshape(*values.shape[:2], -1)
            weights[name[:-7]] = matrices.swapaxes(1, 2)  # as the unquantised tensor: [experts, in, out]
        elif dtype == "F8_E4M3":
            weights[name] = values * spread_blocks(tensors[name + "_scale_inv"][1], values.shape)
        else:
            weights[name] = values
    return config, weights


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    parts = np.exp(x - x.max(-1, keepdims=True))
    return parts / parts.sum(-1, keepdims=True)


def rms_norm(x, scale, eps):
    return scale * x / np.sqrt((x * x).mean(-1, keepdims=True) + eps)


def swiglu(x, gate, up, down):
    g = x @ gate.T
    return (g * sigmoid(g) * (x @ up.T)) @ down.T


class Model:
    def __init__(self, config, weights):
        self.config = config
        self.weights = weights
        self.kind = config["model_type"]
        self.latent = self.kind in ("deepseek_v2", "deepseek_v3")
        self.eps = config["rms_norm_eps"]
        #: Smallest distance between what was chosen and what was not, over all calls of `forward`.
        self.routing_gap = math.inf

    def option(self, name, default=None):
        value = self.config.get(name)
        return default if value is None else value

    def forward(self, ids):
        """Logits [tokens, vocab], and per MoE layer expert ids and weights [tokens, k] by weight descending."""
        weights, routes = self.weights, {}
        residual = self.option("residual_multiplier", 1)
        hidden = weights["model.embed_tokens.weight"][ids] * self.option("embedding_multiplier", 1)
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            normed = rms_norm(hidden, weights[prefix + "input_layernorm.weight"], self.eps)
            attend = self.latent_attention if self.latent else self.attention
            hidden = hidden + residual * attend(normed, layer, prefix + "self_attn.")
            normed = rms_norm(hidden, weights[prefix + "post_attention_layernorm.weight"], self.eps)
            if self.is_moe(layer):
                mixed, routes[layer] = self.moe(normed, prefix)
                hidden = hidden + residual * mixed
            else:
                hidden = hidden + residual * self.ffn(normed, prefix + "mlp.")
        hidden = rms_norm(hidden, weights["model.norm.weight"], self.eps)
        tied = self.config.get("tie_word_embeddings")
        head = weights["model.embed_tokens.weight" if tied else "lm_head.weight"]
        return hidden @ head.T / self.option("logits_scaling", 1), routes

    def project(self, x, name):
        y = x @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"] if name + ".bias" in self.weights else y

    # --- attention

    def rope(self, dim):
        """Radians per position of each pair, the factor of cos and sin, and the factor of attention scores."""
        frequencies = self.config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        yarn = self.config.get("rope_scaling")
        if not yarn:
            return frequencies, 1.0, 1.0
        factor, original = yarn["factor"], yarn["original_max_position_embeddings"]

        def pair(turns):
            return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.config["rope_theta"]))

        low, high = pair(yarn["beta_fast"]), pair(yarn["beta_slow"])
        if yarn.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        ramp = np.clip((np.arange(dim // 2) - low) / (high - low or 0.001), 0, 1)
        frequencies = ramp * frequencies / factor + (1 - ramp) * frequencies

        def magnitude(scale):
            return 0.1 * scale * math.log(factor) + 1

        all_dim = yarn.get("mscale_all_dim")
        if not all_dim:
            return frequencies, magnitude(1), 1.0
        return frequencies, magnitude(yarn["mscale"]) / magnitude(all_dim), magnitude(all_dim) ** 2

    def turn(self, x, interleaved):
        """Turns x [..., tokens, dim] by position."""
        frequencies, magnitude, _ = self.rope(x.shape[-1])
        angles = np.arange(x.shape[-2])[:, None] * frequencies
        turned = np.empty_like(x)
        half = x.shape[-1] // 2
        first, second = (slice(0, None, 2), slice(1, None, 2)) if interleaved else (slice(0, half), slice(half, None))
        complex_ = (x[..., first] + 1j * x[..., second]) * np.exp(1j * angles) * magnitude
        turned[..., first], turned[..., second] = complex_.real, complex_.imag
        return turned

    def heads(self, x, name, count):
        y = self.project(x, name)
        return y.reshape(len(x), count, -1).swapaxes(0, 1)

    def attention(self, x, layer, prefix):
        config, weights = self.config, self.weights
        count, kv_count = config["num_attention_heads"], config["num_key_value_heads"]
        q, k, v = (self.project(x, prefix + name) for name in ("q_proj", "k_proj", "v_proj"))
        if self.kind == "olmoe":
            q = rms_norm(q, weights[prefix + "q_norm.weight"], self.eps)
            k = rms_norm(k, weights[prefix + "k_norm.weight"], self.eps)
            clip = self.option("clip_qkv", math.inf)
            q, k, v = (np.clip(each, -clip, clip) for each in (q, k, v))
        q, k, v = (
            each.reshape(len(x), n, -1).swapaxes(0, 1) for each, n in ((q, count), (k, kv_count), (v, kv_count))
        )
        if self.kind == "qwen3_moe":
            q = rms_norm(q, weights[prefix + "q_norm.weight"], self.eps)
            k = rms_norm(k, weights[prefix + "k_norm.weight"], self.eps)
        q, k = self.turn(q, False), self.turn(k, False)
        k, v = (np.repeat(each, count // kv_count, 0) for each in (k, v))
        scale = config["attention_multiplier"] if self.kind == "granitemoe" else q.shape[-1] ** -0.5
        sliding = self.kind == "mixtral" or (
            self.kind == "gpt_oss" and config["layer_types"][layer] == "sliding_attention"
        )
        window = self.option("sliding_window", math.inf) if sliding else math.inf
        sinks = weights[prefix + "sinks"] if self.kind == "gpt_oss" else None
        return self.project(self.attend(q, k, v, scale, window, sinks), prefix + "o_proj")

    def latent_attention(self, x, layer, prefix):
        config, weights = self.config, self.weights
        count, nope, turned = config["num_attention_heads"], config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        rank = config["kv_lora_rank"]
        if self.option("q_lora_rank"):
            down = rms_norm(self.project(x, prefix + "q_a_proj"), weights[prefix + "q_a_layernorm.weight"], 1e-6)
            q = self.heads(down, prefix + "q_b_proj", count)
        else:
            q = self.heads(x, prefix + "q_proj", count)
        both = self.project(x, prefix + "kv_a_proj_with_mqa")
        latent = rms_norm(both[:, :rank], weights[prefix + "kv_a_layernorm.weight"], 1e-6)
        kv = self.heads(latent, prefix + "kv_b_proj", count)
        shared_key = np.broadcast_to(self.turn(both[None, :, rank:], True), (count, len(x), turned))
        q = np.concatenate([q[..., :nope], self.turn(q[..., nope:], True)], -1)
        k = np.concatenate([kv[..., :nope], shared_key], -1)
        scale = (nope + turned) ** -0.5 * self.rope(turned)[2]
        return self.project(self.attend(q, k, kv[..., nope:], scale), prefix + "o_proj")

    @staticmethod
    def attend(q, k, v, scale, window=math.inf, sinks=None):
        scores = q @ k.swapaxes(1, 2) * scale
        tokens = q.shape[1]
        behind = np.arange(tokens)[:, None] - np.arange(tokens)[None]
        scores = np.where((behind < 0) | (behind >= window), -np.inf, scores)
        if sinks is not None:
            column = np.broadcast_to(sinks[:, None, None], (len(sinks), tokens, 1))
            scores = np.concatenate([scores, column], -1)
        mixed = softmax(scores)[..., :tokens] @ v
        return mixed.swapaxes(0, 1).reshape(tokens, -1)

    # --- what stands after attention

    def is_moe(self, layer):
        config = self.config
        if self.kind.startswith("qwen"):
            chosen = (layer + 1) % config["decoder_sparse_step"] == 0
            return chosen and layer not in config["mlp_only_layers"]
        if self.kind.startswith("deepseek"):
            return layer >= config["first_k_dense_replace"] and layer % config["moe_layer_freq"] == 0
        return True

    def ffn(self, x, prefix):
        names = ("gate_proj", "up_proj", "down_proj")
        return swiglu(x, *(self.weights[f"{prefix}{name}.weight"] for name in names))

    def gate_name(self):
        return {
            "mixtral": "block_sparse_moe.gate",
            "granitemoe": "block_sparse_moe.router.layer",
            "gpt_oss": "mlp.router",
        }.get(self.kind, "mlp.gate")

    def route(self, x, prefix):
        """Expert ids and weights [tokens, k] by weight descending."""
        config = self.config
        logits = self.project(x, prefix + self.gate_name())
        count, k = logits.shape[-1], config["num_experts_per_tok"]
        scores = sigmoid(logits) if self.kind == "deepseek_v3" else softmax(logits)
        choice = scores
        if self.kind == "deepseek_v3":
            choice = scores + self.weights[prefix + "mlp.gate.e_score_correction_bias"]
        if self.kind == "deepseek_v3" or self.option("topk_method") == "group_limited_greedy":
            choice = self.within_groups(choice, config["n_group"], config["topk_group"])
        order = np.argsort(-choice, -1, kind="stable")
        ordered = np.take_along_axis(choice, order, -1)
        if k < count:
            self.routing_gap = min(self.routing_gap, (1 - ordered[:, k] / ordered[:, k - 1]).min())
        ids = order[:, :k]
        weights = np.take_along_axis(scores, ids, -1)
        always = self.kind in ("mixtral", "granitemoe", "gpt_oss")
        if always or config["norm_topk_prob"]:
            weights = weights / weights.sum(-1, keepdims=True)
        # DeepSeek-V2 scales only what it does not normalise, V3 both.
        if self.kind == "deepseek_v3" or (self.kind == "deepseek_v2" and not config["norm_topk_prob"]):
            weights = weights * config["routed_scaling_factor"]
        by_weight = np.argsort(-weights, -1, kind="stable")
        return np.take_along_axis(ids, by_weight, -1), np.take_along_axis(weights, by_weight, -1)

    def within_groups(self, choice, groups, top):
        """The choice with experts outside of each token's best groups out of reach."""
        members = choice.reshape(len(choice), groups, -1)
        ranked = np.sort(members, -1)
        rank = ranked[..., -2:].sum(-1) if self.kind == "deepseek_v3" else ranked[..., -1]
        order = np.argsort(-rank, -1, kind="stable")
        if top < groups:
            ordered = np.take_along_axis(rank, order, -1)
            self.routing_gap = min(self.routing_gap, (1 - ordered[:, top] / ordered[:, top - 1]).min())
        closed = np.ones(rank.shape, bool)
        np.put_along_axis(closed, order[:, :top], False, -1)
        return np.where(closed[..., None], -np.inf, members).reshape(choice.shape)

    def expert(self, x, prefix, index):
        weights = self.weights
        if self.kind == "mixtral":
            prefix += f"block_sparse_moe.experts.{index}."
            return swiglu(x, *(weights[f"{prefix}{name}.weight"] for name in ("w1", "w3", "w2")))
        if self.kind == "granitemoe":
            gate, up = np.split(weights[prefix + "block_sparse_moe.input_linear.weight"][index], 2)
            return swiglu(x, gate, up, weights[prefix + "block_sparse_moe.output_linear.weight"][index])
        fused = prefix + "mlp.experts.gate_up_proj"
        if self.kind == "gpt_oss":
            both = x @ weights[fused][index] + weights[fused + "_bias"][index]
            limit = self.config["swiglu_limit"]
            gate, up = np.minimum(both[:, ::2], limit), np.clip(both[:, 1::2], -limit, limit)
            down = prefix + "mlp.experts.down_proj"
            inner = (up + 1) * gate * sigmoid(1.702 * gate)
            return inner @ weights[down][index] + weights[down + "_bias"][index]
        if fused in weights:
            gate, up = np.split(weights[fused][index], 2)
            return swiglu(x, gate, up, weights[prefix + "mlp.experts.down_proj"][index])
        return self.ffn(x, f"{prefix}mlp.experts.{index}.")

    def moe(self, x, prefix):
        ids, mix = self.route(x, prefix)
        out = np.zeros_like(x)
        for index in np.unique(ids):
            rows, places = np.nonzero(ids == index)
            out[rows] += mix[rows, places, None] * self.expert(x[rows], prefix, index)
        if self.kind == "qwen2_moe":
            gate = sigmoid(x @ self.weights[prefix + "mlp.shared_expert_gate.weight"].T)
            out += gate * self.ffn(x, prefix + "mlp.shared_expert.")
        if self.kind.startswith("deepseek") and self.option("n_shared_experts"):
            out += self.ffn(x, prefix + "mlp.shared_experts.")
        return out, (ids, mix)
