"""A twin of the model, tuned for one task: a small file of the tensors that changed.

    python twin.py tune WORK TASK [--steps 60]     writes WORK/model/twin/<task>.safetensors
    python twin.py apply MODEL TWIN OUT             writes the tuned model folder OUT

Only routers, norms and attention are trained; experts and embedding stay. The file holds the tuned tensors as they are
(BF16, published names), so that applying it gives the tuned model bit by bit; its metadata names the model it belongs to
(sha256 of model.safetensors) and the tuning. Methods that compare a checkpoint before and after fine-tuning, such as
pruning by the change of the routers' norms, have both sides here.
"""

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prepare import TASKS
from published import read_model, to_published
from mix import Stream

TUNED = ("router", "norm1", "norm2", "qkv", "qkv_bias", "out")
LENGTH = 512


def weights_hash(folder):
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()


@torch.no_grad()
def heldout_loss(model, work, task, load):
    ids = np.fromfile(work / f"tokens/{task}.heldout.bin", dtype=np.uint16).astype(np.int64)
    ids = torch.from_numpy(ids[: 16 * LENGTH + 1])
    return model(ids[:-1].view(-1, LENGTH), ids[1:].view(-1, LENGTH), load)[1].mean().item()


def tune(work, task, steps, tokens, rate):
    folder = work / "model"
    model = read_model(folder)
    load = torch.ones(model.c.layers, model.c.experts) / model.c.experts
    named = dict(model.named_parameters())
    for name, p in named.items():
        p.requires_grad_(name.startswith("layers.") and name.rsplit(".", 1)[-1] in TUNED)
    tuned = [p for p in named.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(tuned, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    stream, before = Stream(work / f"tokens/{task}.bin"), {t: heldout_loss(model, work, t, load) for t in TASKS}
    count = tokens // LENGTH
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
        # From the end of the stream: what the training took last.
        windows = torch.from_numpy(np.stack([stream.window(-1 - (step * count + i), LENGTH) for i in range(count)]))
        total = 0.0
        for half in windows.split(max(count // 4, 1)):
            loss = model(half[:, :-1], half[:, 1:], load)[0] * len(half) / count
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(tuned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 9:
            print(f"step {step + 1}: {task} {total:.3f}", flush=True)
    after = {t: heldout_loss(model, work, t, load) for t in TASKS}
    base, tensors = load_file(folder / "model.safetensors"), to_published(model.state_dict(), model.c)
    changed = {name: t for name, t in tensors.items() if not torch.equal(t, base[name])}
    about = {
        "model_sha256": weights_hash(folder),
        "task": task,
        "steps": str(steps),
        "tokens": str(steps * count * LENGTH),
        "rate": str(rate),
        "heldout_loss_before": json.dumps({t: round(v, 4) for t, v in before.items()}),
        "heldout_loss_after": json.dumps({t: round(v, 4) for t, v in after.items()}),
    }
    (folder / "twin").mkdir(exist_ok=True)
    path = folder / f"twin/{task}.safetensors"
    save_file(changed, path, about)
    path.chmod(0o644)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB; loss on held-out {task} {before[task]:.4f} -> {after[task]:.4f}")


def apply(model, twin, out):
    with safe_open(twin, "pt") as file:
        wanted = file.metadata()["model_sha256"]
    if weights_hash(model) != wanted:
        raise SystemExit(f"{twin} belongs to another model: its sha256 is {wanted}, that of {model} {weights_hash(model)}")
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, out / name)
    tensors = load_file(model / "model.safetensors") | load_file(twin)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    tuning = commands.add_parser("tune")
    tuning.add_argument("work", type=Path)
    tuning.add_argument("task", choices=TASKS)
    tuning.add_argument("--steps", type=int, default=60)
    tuning.add_argument("--tokens", type=int, default=2048, help="per step")
    tuning.add_argument("--rate", type=float, default=5e-4)
    applying = commands.add_parser("apply")
    for name in ("model", "twin", "out"):
        applying.add_argument(name, type=Path)
    args = parser.parse_args()
    if args.command == "tune":
        tune(args.work, args.task, args.steps, args.tokens, args.rate)
    else:
        apply(args.model, args.twin, args.out)


if __name__ == "__main__":
    main()
