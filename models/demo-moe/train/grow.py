"""A larger model that begins where a smaller one ended.

    python grow.py BASE WORK [--layers 6] [--hidden 256] [--heads 8] [--experts 64] [--top-k 4] [--shared 128] [--check]

BASE is a published model folder whose merges WORK/model/tokenizer.json continues. Hidden dimensions, heads, layers and
shared units are added so that the function stays: what reads a new part begins at zero, what writes to it does not, so
that gradients flow. A new token starts as the mean of its two parts. New experts are perturbed copies of the busiest ones,
router rows too, so that copy and original share the tokens. Writes WORK/start.pt. --check compares the logits of both
models on text in the old tokens, without and with new experts.
"""

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from model import Config, Model
from prepare import TASKS
from published import read_model
from tokenizer import BYTES, SPECIALS, read_merges

NOISE = 0.3  # of the spread of the existing weights: what writes to new dimensions


@torch.no_grad()
def expert_shares(model, ids):
    """The share of each expert in the choices of windows ids [B, L], [layers, E]."""
    return model.hidden(ids, torch.ones(model.c.layers, model.c.experts))[2]


def widen(tensor, shape, fill):
    """`tensor` in the low corner of a tensor of `shape`, the rest from fill(shape)."""
    out = fill(shape)
    out[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return out


def embeddings(old, base, folder, hidden, spread):
    """The new embedding [V, hidden]: old rows, then each merge as the mean of its parts, then the special tokens."""
    merges, kept = read_merges(folder), len(read_merges(base))
    rows = list(old[: len(BYTES) + kept])
    vocab = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    for left, right in merges[kept:]:
        rows.append((rows[vocab[left]] + rows[vocab[right]]) / 2)
    rows += list(old[-len(SPECIALS) :])
    return widen(torch.stack(rows), (len(rows), hidden), lambda s: torch.randn(s) * 0.1 * spread)


def grow(base, folder, c, ids, new_experts=True):
    """The state dict of a model of Config `c` grown from the published folder `base`; ids [B, L] are old tokens."""
    small = read_model(base)
    o, old = small.c, small.state_dict()
    torch.manual_seed(1)
    shares = expert_shares(small, ids)
    zeros = torch.zeros
    state = Model(c).state_dict()
    spread = old["embedding"].std().item()
    scale = math.sqrt(o.hidden / c.hidden)  # the mean square is over more dimensions, the new ones near zero

    def grow_norm(weight):
        return widen(weight, (c.hidden,), lambda s: torch.full(s, weight.mean().item())) * scale

    def writes(tensor, shape):
        return widen(tensor, shape, lambda s: torch.randn(s) * NOISE * tensor.std())

    state["embedding"] = embeddings(old["embedding"], base, folder, c.hidden, spread)
    state["norm"] = grow_norm(old["norm"])
    group, d = o.heads // o.kv_heads, o.head_dim
    # Where the old query heads go: each KV head keeps its queries first and gets new ones after them.
    place = [h // group * (c.heads // c.kv_heads) + h % group for h in range(o.heads)]
    for i in range(c.layers):
        name = f"layers.{i}."
        if i >= o.layers:  # a layer that adds nothing yet
            for part in ("out", "down", "shared_down"):
                state[name + part] *= 0
            continue
        was = {k.removeprefix(name): v for k, v in old.items() if k.startswith(name)}
        new = {"norm1": grow_norm(was["norm1"]), "norm2": grow_norm(was["norm2"])}
        q = torch.randn(c.heads, d, c.hidden) * was["qkv"].std()
        bias, out = zeros(c.heads, d), zeros(c.hidden, c.heads, d)
        q[place] = widen(was["qkv"][: o.heads * d].view(o.heads, d, -1), (o.heads, d, c.hidden), zeros)
        bias[place] = was["qkv_bias"][: o.heads * d].view(o.heads, d)
        out[:, place] = writes(was["out"].view(-1, o.heads, d), (c.hidden, o.heads, d))
        kv = was["qkv"][o.heads * d :]
        new["qkv"] = torch.cat([q.view(-1, c.hidden), widen(kv, (len(kv), c.hidden), zeros)])
        new["qkv_bias"] = torch.cat([bias.view(-1), was["qkv_bias"][o.heads * d :]])
        new["out"] = out.reshape(c.hidden, -1)
        new["shared_gate"] = widen(was["shared_gate"], (1, c.hidden), zeros)
        gate, up = was["shared_gate_up"].chunk(2)
        fresh = lambda s: torch.randn(s) * gate.std()  # noqa: E731
        both = [widen(part, (c.shared, part.shape[1]), fresh) for part in (gate, up)]
        new["shared_gate_up"] = widen(torch.cat(both), (2 * c.shared, c.hidden), zeros)
        used = writes(was["shared_down"], (c.hidden, o.shared))
        new["shared_down"] = widen(used, (c.hidden, c.shared), zeros)
        router, gate_up, down = was["router"], was["gate_up"], was["down"]
        if new_experts and c.experts > o.experts:
            parents = shares[i].argsort(descending=True).repeat(2)[: c.experts - o.experts]
            copies = router[parents]
            copies = copies + torch.randn(copies.shape) * 0.3 * router.std()
            noisy = lambda t: t[parents] + torch.randn(t[parents].shape) * 0.1 * t.std()  # noqa: E731
            router, gate_up, down = (
                torch.cat([router, copies]),
                torch.cat([gate_up, noisy(gate_up)]),
                torch.cat([down, noisy(down)]),
            )
        new["router"] = widen(router, (len(router), c.hidden), zeros)
        new["gate_up"] = widen(gate_up, (len(gate_up), c.hidden, 2 * c.width), zeros)
        new["down"] = writes(down, (len(down), c.width, c.hidden))
        state |= {name + part: tensor.contiguous() for part, tensor in new.items()}
    return state


@torch.no_grad()
def check(base, folder, c, ids):
    """Prints how far the grown models' logits are from the old model's, on the old tokens.

    Without noise and new experts they are equal where the norms' epsilon shrinks with the mean square.
    """
    small = read_model(base)
    load = torch.ones(c.layers, max(c.experts, small.c.experts))
    keep = small.c.vocab - len(SPECIALS)
    want = small.hidden(ids, load[: small.c.layers, : small.c.experts])[0] @ small.embedding[:keep].t()
    target = ids[:, 1:].reshape(-1)

    def loss(logits):
        rows = logits.view(*ids.shape, -1)[:, :-1].reshape(len(target), -1)
        return torch.nn.functional.cross_entropy(rows, target).item()

    global NOISE
    noise = NOISE
    for label, experts, amount in [("no new experts", False, 0.0), ("noise", False, noise), ("all", True, noise)]:
        NOISE = amount
        grown_config = c if experts else replace(c, experts=small.c.experts, top_k=small.c.top_k)
        grown = Model(grown_config)
        state = grow(base, folder, grown_config, ids, experts)
        if amount == 0.0:
            state["embedding"][:, small.c.hidden :] = 0
            grown.c = replace(grown_config, eps=small.c.eps * small.c.hidden / c.hidden)
            for layer in grown.layers:
                layer.c = grown.c
        grown.load_state_dict(state)
        got = grown.hidden(ids, load[:, : grown_config.experts])[0] @ grown.embedding[:keep].t()
        print(f"{label}: largest difference {(got - want).abs().max():.2e}, loss {loss(want):.4f} -> {loss(got):.4f}")
    NOISE = noise


def main():
    args = argparse.ArgumentParser()
    args.add_argument("base", type=Path)
    args.add_argument("work", type=Path)
    for name in ("layers", "hidden", "heads", "experts", "top_k", "shared"):
        args.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Config, name))
    args.add_argument("--check", action="store_true")
    args.add_argument("--name", default="start.pt")
    args = args.parse_args()
    torch.manual_seed(1)
    folder = args.work / "model"
    vocab = len(BYTES) + len(read_merges(folder)) + len(SPECIALS)
    sizes = {n: getattr(args, n) for n in ("layers", "hidden", "heads", "experts", "top_k", "shared")}
    c = replace(Config.read(args.base), vocab=vocab, **sizes)
    tokenizer = Tokenizer.from_file(str(args.base / "tokenizer.json"))
    ordinary = tokenizer.get_vocab_size() - len(SPECIALS)
    windows = []
    for task in TASKS:
        with open(args.work / f"train/{task}.jsonl", encoding="utf-8") as lines:
            text = "".join(json.loads(next(lines))["text"] for _ in range(20))[:20000]
        # Special tokens are left out: their ids differ between the two vocabularies.
        ids = [i for i in tokenizer.encode(text).ids if i < ordinary]
        windows += [ids[j * 256 : (j + 1) * 256] for j in range(4)]
    ids = torch.tensor([w for w in windows if len(w) == 256])
    if args.check:
        check(args.base, folder, c, ids)
    model = Model(c)
    model.load_state_dict(grow(args.base, folder, c, ids))
    torch.save({"config": c, "model": model.state_dict()}, args.work / args.name)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters -> {args.work / args.name}")


if __name__ == "__main__":
    main()
