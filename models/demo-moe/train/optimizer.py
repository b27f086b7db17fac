"""Muon for the matrices inside layers, AdamW for the rest."""

import math

import torch

MUON = ("qkv", "out", "gate_up", "down", "shared_gate_up", "shared_down")


def orthogonal(matrices):
    """About the nearest semi-orthogonal matrices of a batch [N, rows, columns]: five Newton-Schulz steps, as Muon does.

    The steps run on the Gram matrix of the shorter side, which costs half of what they cost on the matrices.
    """
    turn = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if turn else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    gram, product = x @ x.mT, None
    for left in reversed(range(5)):
        step = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        step.diagonal(dim1=1, dim2=2).add_(3.4445)
        product = step if product is None else step @ product
        if left:
            gram = step @ gram @ step
    x = product @ x
    return x.mT if turn else x


def as_matrices(part, tensor, c):
    """A weight as the batches of matrices [N, rows, columns] that it is made of (views, no copies)."""
    if part == "gate_up":
        return [tensor[..., : c.width], tensor[..., c.width :]]
    if part == "shared_gate_up":
        return [half[None] for half in tensor.chunk(2)]
    if part == "qkv":
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        return [piece[None] for piece in tensor.split([q, kv, kv])]
    return [tensor] if tensor.dim() == 3 else [tensor[None]]


class Optimizer:
    """Updates the parameters `named`; `adamw`: the matrices by AdamW too."""

    def __init__(self, named, c, adamw=False, decay=0.1):
        self.c, self.decay = c, decay
        part = {n: n.rsplit(".", 1)[-1] for n in named}
        self.matrices = {n: p for n, p in named.items() if part[n] in MUON and not adamw}
        self.momentum = {n: torch.zeros_like(p) for n, p in self.matrices.items()}
        self.rest = {n: p for n, p in named.items() if n not in self.matrices}
        groups = {}
        for n, p in self.rest.items():  # routers, norms, biases and gates do not decay
            groups.setdefault(decay if part[n] in MUON else 0.01 if n == "embedding" else 0.0, []).append(p)
        groups = [{"params": params, "weight_decay": amount} for amount, params in groups.items()]
        self.adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-10, fused=True)

    @torch.no_grad()
    def step(self, rate, scale):
        """One update at learning rate `rate` by the parameters' gradients times `scale`."""
        for name, p in self.matrices.items():
            p.grad.mul_(scale)
            moment = self.momentum[name].lerp_(p.grad, 0.05)
            ahead = torch.lerp(p.grad, moment, 0.95)
            p.mul_(1 - rate * self.decay)
            part = name.rsplit(".", 1)[-1]
            for target, source in zip(as_matrices(part, p, self.c), as_matrices(part, ahead, self.c)):
                size = 0.2 * math.sqrt(max(source.shape[1:]))  # about as large as a step of AdamW
                target.add_(orthogonal(source), alpha=-rate * size)
        for group in self.adam.param_groups:
            group["lr"] = rate
            for p in group["params"]:
                p.grad.mul_(scale)
        self.adam.step()

    def state(self):
        """{parameter's name: its tensors}"""
        moments = {n: {"momentum": m} for n, m in self.momentum.items()}
        return moments | {n: self.adam.state[p] for n, p in self.rest.items()}

    def load(self, state):
        """Takes its own parameters' tensors out of a whole model's state."""
        for n, moment in self.momentum.items():
            moment.copy_(state[n]["momentum"])
        for n, p in self.rest.items():
            self.adam.state[p] = {k: v.to(p.device) for k, v in state[n].items()}
