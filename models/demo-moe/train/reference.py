"""An independent plain forward pass of a published Qwen2-MoE folder; shares no code with model.py.

Reads model.safetensors itself (BF16, published names), widens to float32 or float64, and goes through heads and experts
one by one. What eval/reference.json and the goldens say comes from here.
"""

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer


def read_tensors(path, dtype):
    """{published name: tensor of dtype} of a BF16 safetensors file."""
    data = Path(path).read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, about in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = about["data_offsets"]
        bits = np.frombuffer(data, "<u2", (end - begin) // 2, 8 + size + begin).astype(np.uint32) << 16
        tensors[name] = torch.from_numpy(bits.view(np.float32)).reshape(about["shape"]).to(dtype)
    return tensors


class Reference:
    """A model folder's function. `keep` [layers, experts] (bool), where set, takes the other experts out of the routing."""

    def __init__(self, folder, dtype=torch.float32):
        self.folder, self.dtype, self.keep = Path(folder), dtype, None
        self.config = json.loads((self.folder / "config.json").read_text())
        self.tensors = read_tensors(self.folder / "model.safetensors", dtype)
        self.tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        spec = json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8"))
        # One character of the byte alphabet is one byte; special tokens stand for no bytes of the text.
        self.token_bytes = np.zeros(self.config["vocab_size"], dtype=np.int64)
        for token, i in spec["model"]["vocab"].items():
            self.token_bytes[i] = len(token)

    def rms(self, x, weight):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * weight

    def attention(self, h, name, cos, sin):
        """h [L, H] -> [L, H], head by head."""
        c, length = self.config, len(h)
        heads, kv_heads, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

        def project(part, count):
            rows = h @ self.tensors[f"{name}{part}_proj.weight"].T + self.tensors[f"{name}{part}_proj.bias"]
            return rows.view(length, count, d).transpose(0, 1)

        def rotate(x):
            return x * cos + torch.cat((-x[..., d // 2 :], x[..., : d // 2]), -1) * sin

        q, k, v = rotate(project("q", heads)), rotate(project("k", kv_heads)), project("v", kv_heads)
        mask = torch.full((length, length), float("-inf"), dtype=self.dtype).triu(1)
        out = torch.empty(length, heads, d, dtype=self.dtype)
        for head in range(heads):
            kv = head // (heads // kv_heads)
            out[:, head] = torch.softmax(q[head] @ k[kv].T / math.sqrt(d) + mask, -1) @ v[kv]
        return out.reshape(length, -1) @ self.tensors[name + "o_proj.weight"].T

    def swiglu(self, h, name):
        gate, up, down = (self.tensors[f"{name}{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (torch.nn.functional.silu(h @ gate.T) * (h @ up.T)) @ down.T

    def experts(self, h, name, layer, trace):
        """h [L, H] -> [L, H]: routed experts by their softmax weights as they are, and the gated shared expert."""
        c = self.config
        logits = h @ self.tensors[name + "gate.weight"].T
        if self.keep is not None:
            logits = logits.masked_fill(~self.keep[layer], float("-inf"))
        chance = torch.softmax(logits, -1)
        weight, index = torch.topk(chance, c["num_experts_per_tok"], -1)
        out = torch.zeros_like(h)
        for expert in index.unique().tolist():
            row, slot = torch.where(index == expert)
            out[row] += self.swiglu(h[row], f"{name}experts.{expert}.") * weight[row, slot][:, None]
        if trace is not None:
            trace.append((index, weight, chance))
        gate = torch.sigmoid(h @ self.tensors[name + "shared_expert_gate.weight"].T)
        return out + gate * self.swiglu(h, name + "shared_expert.")

    @torch.no_grad()
    def forward(self, ids, trace=None):
        """Logits [L, V] of ids; `trace`, a list, gets (experts [L, K], weights [L, K], chances [L, E]) per layer."""
        c, t = self.config, self.tensors
        d = c["head_dim"]
        x = t["model.embed_tokens.weight"][torch.as_tensor(ids)]
        speed = 1.0 / (c["rope_theta"] ** (torch.arange(0, d, 2, dtype=torch.float32) / d))
        angle = torch.outer(torch.arange(len(ids), dtype=torch.float32), speed).to(self.dtype)
        cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([angle.sin()] * 2, -1)
        for layer in range(c["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            x = x + self.attention(self.rms(x, t[name + "input_layernorm.weight"]), name + "self_attn.", cos, sin)
            h = self.rms(x, t[name + "post_attention_layernorm.weight"])
            x = x + self.experts(h, name + "mlp.", layer, trace)
        return self.rms(x, t["model.norm.weight"]) @ t["model.embed_tokens.weight"].T

    def sample(self, prompt, count, temperature, top_k, top_p, seed=11):
        """`count` tokens of text after `prompt`, fewer where the model ends its turn."""
        torch.manual_seed(seed)
        ids = self.tokenizer.encode(prompt).ids
        begin = len(ids)
        ends = (self.config["eos_token_id"], self.tokenizer.token_to_id("<|im_end|>"))
        for _ in range(count):
            values, tokens = torch.topk(self.forward(ids)[-1], top_k)
            chance = torch.softmax(values / temperature, -1)
            chance = chance * (torch.cumsum(chance, 0) - chance < top_p)
            token = tokens[torch.multinomial(chance, 1)].item()
            if token in ends:
                break
            ids.append(token)
        return self.tokenizer.decode(ids[begin:], skip_special_tokens=False)
