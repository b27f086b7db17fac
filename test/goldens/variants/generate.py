"""Writes the checkpoints of this folder with what reference.py computes of them, or checks reference.py.

    python -m venv /tmp/venv && /tmp/venv/bin/pip install numpy
    /tmp/venv/bin/python test/goldens/variants/generate.py            writes every variant, or those named
    /tmp/venv/bin/python test/goldens/variants/generate.py --check    compares reference.py with all goldens

Weights are random, biases, norms, sinks and corrections as well. A seed is taken where routing and greedy choices have
room for float32; a variant is refused whose option could be forgotten without moving a logit by 0.05.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np

from reference import E4M3, Model, read_checkpoint, read_safetensors, spread_blocks
from variants import VARIANTS, tensor_shapes

HERE = Path(__file__).parent
PROMPT_LENGTHS = (1, 5, 12, 40)
GREEDY_TOKENS = 24
#: Room between the two most likely tokens, and relative room between the last chosen expert and the next.
MIN_GREEDY_MARGIN = 0.004
MIN_ROUTING_GAP = 5e-4
MIN_MUTATION = 0.05


def encode(dtype, values):
    """float64 values rounded to a dtype, as little-endian bytes."""
    if dtype == "BF16":
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    if dtype == "F8_E4M3":
        known = np.argsort(np.where(np.isnan(E4M3), np.inf, E4M3), kind="stable")[:254]
        at = np.clip(np.searchsorted(E4M3[known], values), 1, 253)
        lower = values - E4M3[known[at - 1]] < E4M3[known[at]] - values
        return known[np.where(lower, at - 1, at)].astype(np.uint8).tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4", "I32": "<i4"}[dtype]).tobytes()


def write_safetensors(path, tensors):
    """Writes name -> (dtype, shape, bytes)."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def random_values(rng, config, name, shape):
    if name.endswith("norm.weight") or name.endswith("layernorm.weight"):
        return 1 + 0.3 * rng.standard_normal(shape)
    if name.endswith("sinks"):
        return 1 + rng.standard_normal(shape)
    if name.endswith("e_score_correction_bias"):
        return 0.3 * rng.standard_normal(shape)
    if name.endswith("bias"):
        return 0.5 * rng.standard_normal(shape)
    if name.endswith("embed_tokens.weight"):
        # Where the head is the embedding, a token that outweighs its context would only predict itself.
        return (0.2 if config["tie_word_embeddings"] else 1.0) * rng.standard_normal(shape)
    columns = shape[-1]
    gain = 3.0 if name == "lm_head.weight" else 2.0 if "gate.weight" in name or "router" in name else 1.5
    return gain / math.sqrt(columns) * rng.standard_normal(shape)


def is_fp8(config, name, shape):
    """DeepSeek-V3 quantises the matrices of its layers but the gate's."""
    return (
        "quantization_config" in config
        and len(shape) == 2
        and name.startswith("model.layers.")
        and not name.endswith("mlp.gate.weight")
    )


def row_blocks(values, block=128):
    """Rows of blocks of a matrix, partial ones at the edges."""
    rows, columns = (range(0, size, block) for size in values.shape)
    return [[values[r : r + block, c : c + block] for c in columns] for r in rows]


def make_tensors(rng, variant):
    """Random weights in their published dtypes: name -> (dtype, shape, bytes)."""
    config, tensors = variant.config, {}
    for name, shape in tensor_shapes(config, variant.fused).items():
        values = random_values(rng, config, name, shape)
        if is_fp8(config, name, shape):
            grid = [-(-size // 128) for size in shape]
            values *= spread_blocks(rng.uniform(0.5, 2, grid), shape)
            scales = np.array([[abs(block).max() / 448 for block in row] for row in row_blocks(values)], np.float32)
            tensors[name] = ("F8_E4M3", shape, encode("F8_E4M3", values / spread_blocks(scales, shape)))
            tensors[name + "_scale_inv"] = ("F32", grid, encode("F32", scales))
        else:
            kind = "F32" if name.endswith("e_score_correction_bias") else variant.dtype
            tensors[name] = (kind, shape, encode(kind, values))
    return tensors


def write_model(directory, config, tensors, files):
    """One file, or several with an index."""
    directory.mkdir(exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    if files == 1:
        write_safetensors(directory / "model.safetensors", tensors)
        return
    weight_map = {name: f"model-{i % files + 1:05}-of-{files:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        write_safetensors(directory / file, {n: t for n, t in tensors.items() if weight_map[n] == file})
    total = sum(len(data) for _, _, data in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def continue_greedily(model, prompt):
    """The continuation and its smallest margin; None where a margin is too small."""
    ids, margin = list(prompt), math.inf
    for _ in range(GREEDY_TOKENS):
        last = model.forward(ids)[0][-1]
        second, first = np.sort(last)[-2:]
        margin = min(margin, first - second)
        if margin < MIN_GREEDY_MARGIN:
            return None
        ids.append(int(last.argmax()))
    return ids[len(prompt) :], margin


def make_golden(directory, rng):
    """Prompts, continuations and expected tensors of a written checkpoint; None where the seed leaves no room."""
    config, weights = read_checkpoint(directory)
    model = Model(config, weights)
    prompts = [rng.integers(2, config["vocab_size"], length).tolist() for length in PROMPT_LENGTHS]
    results = [model.forward(prompt) for prompt in prompts]
    continued = []
    for prompt in prompts:
        continuation = continue_greedily(model, prompt)
        if continuation is None or model.routing_gap < MIN_ROUTING_GAP:
            return None
        continued.append(continuation)
    tensors = {}
    for i, (logits, routes) in enumerate(results):
        tensors[f"logits.{i}"] = ("F32", logits.shape, encode("F32", logits))
        for layer, (ids, mix) in routes.items():
            tensors[f"route_idx.{i}.{layer}"] = ("I32", ids.shape, encode("I32", ids))
            tensors[f"route_w.{i}.{layer}"] = ("F32", mix.shape, encode("F32", mix))
    golden = {
        "source": "reference.py, float64",
        "prompts": prompts,
        "greedy": [ids for ids, _ in continued],
        "greedy_min_margin": [float(margin) for _, margin in continued],
        "router_min_gap": float(model.routing_gap),
    }
    return golden, tensors, results


def mutation_effects(variant, directory, golden, results):
    """For each option that could be forgotten, the largest change of a logit without it."""
    effects = {}
    for what, mutate in variant.mutations.items():
        config, weights = read_checkpoint(directory)
        mutate(config, weights)
        mutated = Model(config, weights)
        far = max(
            abs(mutated.forward(prompt)[0] - logits).max() for prompt, (logits, _) in zip(golden["prompts"], results)
        )
        if far < MIN_MUTATION:
            raise SystemExit(f"{directory.name}: {what}: a logit changes by {far} at most")
        effects[what] = float(f"{far:.3g}")
    return effects


def write_variant(name, variant):
    directory = HERE / name
    for seed in range(1000):
        rng = np.random.default_rng([seed, *name.encode()])
        write_model(directory, variant.config, make_tensors(rng, variant), variant.files)
        made = make_golden(directory, rng)
        if made:
            break
    golden, tensors, results = made
    golden["without"] = mutation_effects(variant, directory, golden, results)
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    write_safetensors(directory / "golden.safetensors", tensors)
    print(f"{name}: seed {seed}, without", golden["without"])


def check(directory):
    """Compares reference.py with a golden; float32 implementations differ by up to 1e-4."""
    config, weights = read_checkpoint(directory)
    model = Model(config, weights)
    golden = json.loads((directory / "golden.json").read_text())
    expected = read_safetensors(directory / "golden.safetensors")
    worst, same = 0.0, True
    for i, prompt in enumerate(golden["prompts"]):
        logits, routes = model.forward(prompt)
        worst = max(worst, abs(logits - expected[f"logits.{i}"][1]).max())
        for layer, (ids, mix) in routes.items():
            same &= bool((np.sort(ids) == np.sort(expected[f"route_idx.{i}.{layer}"][1])).all())
            worst = max(worst, abs(mix - expected[f"route_w.{i}.{layer}"][1]).max())
        continued = continue_greedily(model, prompt)
        same &= continued is None or continued[0] == golden["greedy"][i]
    ok = same and worst < 1e-4
    choices = "the same" if same else "not the same"
    print(f"{'ok ' if ok else 'BAD'} {directory.name}: off by {worst:.1e}, routing and continuations {choices}")
    return ok


def main(arguments):
    if arguments == ["--check"]:
        directories = [file.parent for file in sorted(HERE.parent.rglob("golden.json"))]
        sys.exit(0 if all([check(directory) for directory in directories]) else 1)
    for name in arguments or VARIANTS:
        write_variant(name, VARIANTS[name])


if __name__ == "__main__":
    main(sys.argv[1:])
