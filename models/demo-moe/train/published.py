"""Between the training layout (model.py) and the published Qwen2-MoE tensors of a model folder."""

import torch
from safetensors.torch import load_file

from model import Config, Model


def to_published(state, c):
    """{published name: tensor} of a training state dict."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    out = {"model.embed_tokens.weight": state["embedding"], "model.norm.weight": state["norm"]}
    for i in range(c.layers):
        own, name = f"layers.{i}.", f"model.layers.{i}."
        out[name + "input_layernorm.weight"] = state[own + "norm1"]
        out[name + "post_attention_layernorm.weight"] = state[own + "norm2"]
        weights, biases = (state[own + n].split([q, kv, kv]) for n in ("qkv", "qkv_bias"))
        for part, weight, bias in zip("qkv", weights, biases):
            out[f"{name}self_attn.{part}_proj.weight"] = weight
            out[f"{name}self_attn.{part}_proj.bias"] = bias
        out[name + "self_attn.o_proj.weight"] = state[own + "out"]
        out[name + "mlp.gate.weight"] = state[own + "router"]
        for e in range(c.experts):
            gate, up = state[own + "gate_up"][e].t().chunk(2)
            out[f"{name}mlp.experts.{e}.gate_proj.weight"] = gate
            out[f"{name}mlp.experts.{e}.up_proj.weight"] = up
            out[f"{name}mlp.experts.{e}.down_proj.weight"] = state[own + "down"][e].t()
        gate, up = state[own + "shared_gate_up"].chunk(2)
        out[name + "mlp.shared_expert.gate_proj.weight"] = gate
        out[name + "mlp.shared_expert.up_proj.weight"] = up
        out[name + "mlp.shared_expert.down_proj.weight"] = state[own + "shared_down"]
        out[name + "mlp.shared_expert_gate.weight"] = state[own + "shared_gate"]
    return {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in out.items()}


def from_published(tensors, c):
    """The training state dict (float32) of {published name: tensor}."""
    t = {name: tensor.float() for name, tensor in tensors.items()}
    state = {"embedding": t["model.embed_tokens.weight"], "norm": t["model.norm.weight"]}
    for i in range(c.layers):
        own, name = f"layers.{i}.", f"model.layers.{i}."
        attention, mlp = name + "self_attn.", name + "mlp."
        experts = [f"{mlp}experts.{e}." for e in range(c.experts)]
        state |= {
            own + "norm1": t[name + "input_layernorm.weight"],
            own + "norm2": t[name + "post_attention_layernorm.weight"],
            own + "qkv": torch.cat([t[f"{attention}{part}_proj.weight"] for part in "qkv"]),
            own + "qkv_bias": torch.cat([t[f"{attention}{part}_proj.bias"] for part in "qkv"]),
            own + "out": t[attention + "o_proj.weight"],
            own + "router": t[mlp + "gate.weight"],
            own + "gate_up": torch.stack(
                [torch.cat([t[e + "gate_proj.weight"], t[e + "up_proj.weight"]]).t() for e in experts]
            ),
            own + "down": torch.stack([t[e + "down_proj.weight"].t() for e in experts]),
            own + "shared_gate_up": torch.cat(
                [t[mlp + "shared_expert.gate_proj.weight"], t[mlp + "shared_expert.up_proj.weight"]]
            ),
            own + "shared_down": t[mlp + "shared_expert.down_proj.weight"],
            own + "shared_gate": t[mlp + "shared_expert_gate.weight"],
        }
    return {name: tensor.contiguous() for name, tensor in state.items()}


def read_model(folder):
    """The training model of a published folder."""
    c = Config.read(folder)
    model = Model(c)
    model.load_state_dict(from_published(load_file(f"{folder}/model.safetensors"), c))
    return model
