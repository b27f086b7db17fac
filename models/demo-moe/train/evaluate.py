"""What a model folder is measured by and held to, all from the plain forward pass of reference.py.

    python evaluate.py WORK [--before DIR] [--only reference goldens routing samples before]

Writes into WORK/model: eval/<task>.txt and eval/reference.json (loss per window of held-out text), goldens/*.json (what
tests compare with, cross-checked with Hugging Face transformers in goldens/crosscheck.json), routing/ (which experts
the tasks use) and eval/samples.json. --before compares bits per byte with an earlier model folder, each with its own
tokenizer, on this model's held-out texts and on the earlier one's: WORK/before.json.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from prepare import TASKS
from reference import Reference

WINDOW, TRACE_TOKENS = 512, 4096
GREEDY = 24  # tokens of a golden's continuation
LOSSES_CHECKED = 4  # windows of each task whose loss is compared with transformers'
CANDIDATES = 10  # prompts that each golden is chosen from
TOKEN_MARGIN, ROUTING_GAP = 0.05, 1e-4  # logits: distances from a tie that are worth the same

GAPS = "min_router_logit_gap_last_chosen_to_next_per_layer"  # prompt and continuation
ENDS = ("<|endoftext|>", "<|im_end|>")
SAMPLING = "temperature 0.7, top_k 40, top_p 0.92"
CHATS = {
    "dialogue": ["I am looking for a restaurant in San Jose.", "Can you book me a flight to New York next Friday?"],
    "maths": [
        "Tom has 3 boxes with 12 pencils in each box. He gives away 7 pencils. How many pencils does he have left?",
        "Solve 3*x + 4 = 19 for x.",
    ],
    "facts": ["Tell me about Norway.", "What is the climate of Kenya?"],
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def short(value):
    """Nine digits, enough for a float32."""
    return float(f"{value:.9g}")


def shorten(rows):
    return [shorten(row) if isinstance(row, list) else short(row) for row in rows]


def chatml(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def score(model, text, traces=None):
    """Loss of a text in windows of WINDOW ids, each on its own from position 0; its first token is only context."""
    ids = model.tokenizer.encode(text).ids
    windows = [w for w in (ids[i : i + WINDOW] for i in range(0, len(ids), WINDOW)) if len(w) >= 2]
    means, total, right = [], 0.0, 0
    for window in windows:
        trace = None if traces is None else []
        logits = model.forward(window, trace)[:-1]
        target = torch.tensor(window[1:])
        losses = -torch.log_softmax(logits.double(), -1).gather(1, target[:, None])[:, 0]
        total += losses.sum().item()
        right += (logits.argmax(-1) == target).sum().item()
        means.append(round(losses.mean().item(), 6))
        if traces is not None:
            traces.append(trace)
    scored = sum(len(w) - 1 for w in windows)
    scored_bytes = int(sum(model.token_bytes[w[1:]].sum() for w in windows))
    return {
        "tokens": len(ids),
        "windows": len(windows),
        "scored_tokens": scored,
        "scored_bytes": scored_bytes,
        "nll_sum": total,
        "nll_per_token": total / scored,
        "perplexity": math.exp(total / scored),
        "bits_per_byte": total / math.log(2) / scored_bytes,
        "top1_accuracy": right / scored,
        "text_sha256": sha256(text.encode()),
        "text_bytes": len(text.encode()),
        "window_nll": means,
    }


def write(path, content, indent=1):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")


def evaluate_text(model, work):
    """eval/<task>.txt and eval/reference.json; returns each task's traces (a list per window of a list per layer)."""
    traces, domains = {}, {}
    for task in TASKS:
        text = (work / f"heldout/{task}.txt").read_text(encoding="utf-8")
        (model.folder / "eval").mkdir(exist_ok=True)
        (model.folder / f"eval/{task}.txt").write_text(text, encoding="utf-8", newline="")
        traces[task] = []
        domains[task] = score(model, text, traces[task])
        bits, perplexity = (domains[task][k] for k in ("bits_per_byte", "perplexity"))
        print(f"{task}: {bits:.4f} bits/byte, perplexity {perplexity:.2f}", flush=True)
    method = {
        "window": WINDOW,
        "stride": WINDOW,
        "overlap": 0,
        "bos": "none",
        "text": "the whole eval/<task>.txt is encoded once (literal <|endoftext|> strings become the special token); ids "
        "are cut into consecutive windows; each window is run on its own from position 0; the first token of each window "
        "is context only and is not scored; a last shorter window is used when it has >= 2 tokens",
        "perplexity": "exp(sum NLL / scored tokens)",
        "bits_per_byte": "sum NLL / ln 2 / bytes of the scored tokens (special tokens count 0 bytes; their NLL counts)",
        "weights": "BF16 widened to float32, all arithmetic float32 (PyTorch CPU)",
    }
    weights = sha256((model.folder / "model.safetensors").read_bytes())
    write(model.folder / "eval/reference.json", {"model_sha256": weights, "method": method, "domains": domains})
    return traces


def routing_of(traces):
    """Traces of windows -> experts [layers, tokens, K] and weights alike."""
    layers = range(len(traces[0]))
    both = (torch.stack([torch.cat([w[layer][part] for w in traces]) for layer in layers]) for part in (0, 1))
    return [values.numpy() for values in both]


def entropy(p):
    return -(p * np.log2(np.clip(p, 1e-15, None))).sum(-1)


def distance(a, b):
    """Jensen-Shannon distance (the root of the divergence in bits) between distributions [..., E]."""
    return np.sqrt(np.clip(entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2, 0, None))


def shares(experts, count):
    """experts [layers, tokens, K] -> the share of each expert [layers, E]."""
    layers = len(experts)
    counts = np.stack([np.bincount(experts[i].reshape(-1), minlength=count) for i in range(layers)])
    return counts / counts.sum(1, keepdims=True)


def predictability(experts, count, prompt=128):
    """How much of a prompt's expert uses fall on the quarter of experts that were used most before it, per layer.

    experts: {task: [layers, tokens, K]}, cut into prompts of 128 tokens. The quarter is chosen from the same task's
    previous prompt, from the prompts of another task, from all tasks alike, and from the prompt itself (the most that
    any prediction could reach).
    """
    quarter = count // 4
    loads = {}
    for task, e in experts.items():
        starts = range(0, e.shape[1] - prompt + 1, prompt)
        loads[task] = [shares(e[:, i : i + prompt], count) for i in starts]
    everything = np.mean([load for task in loads.values() for load in task], 0)

    def covered(by, load):
        top = np.argsort(-by, 1)[:, :quarter]
        return np.take_along_axis(load, top, 1).sum(1)

    tasks = list(loads)
    names = ["previous prompt of the task", "previous prompt of another task", "all tasks", "the prompt itself"]
    found = {name: [] for name in names}
    for number, task in enumerate(tasks):
        other = loads[tasks[(number + 1) % len(tasks)]]
        for i in range(1, len(loads[task])):
            load = loads[task][i]
            chosen_by = [loads[task][i - 1], other[(i - 1) % len(other)], everything, load]
            for name, by in zip(names, chosen_by):
                found[name].append(covered(by, load))
    means = {name: np.mean(values, 0).round(4).tolist() for name, values in found.items()}
    return {"prompt_tokens": prompt, "experts_chosen": quarter, **means}


def evaluate_routing(model, traces):
    """routing/: counts and traces per task, and stats.json."""
    c = model.config
    count, layers, top_k = c["num_experts"], c["num_hidden_layers"], c["num_experts_per_tok"]
    uses = {}
    folder = model.folder / "routing"
    folder.mkdir(exist_ok=True)
    for task in TASKS:
        experts, weights = routing_of(traces[task])
        uses[task] = experts
        flat = [(experts[i].reshape(-1), weights[i].reshape(-1)) for i in range(layers)]
        content = {
            "domain": task,
            "tokens": experts.shape[1],
            "layers": layers,
            "experts": count,
            "top_k": top_k,
            "counts": [np.bincount(e, minlength=count).tolist() for e, _ in flat],
            "weight_sums": [shorten(np.bincount(e, weights=w, minlength=count).tolist()) for e, w in flat],
        }
        write(folder / f"{task}.counts.json", content, indent=None)
        # experts[layer][token][rank], rank 0 the largest weight; windows of WINDOW tokens, each run on its own.
        np.save(folder / f"{task}.trace.npy", experts[:, :TRACE_TOKENS].astype(np.uint8))
    p = {task: shares(e, count) for task, e in uses.items()}
    mix = sum(p.values()) / len(p)
    half = {t: [shares(part, count) for part in np.array_split(e, 2, axis=1)] for t, e in uses.items()}
    bits = math.log2(count)
    others = lambda task: np.mean([p[o] for o in TASKS if o != task], 0)  # noqa: E731
    stats = {
        "entropy_mixture": (entropy(mix) / bits).tolist(),
        "entropy": {t: (entropy(p[t]) / bits).tolist() for t in TASKS},
        "max_share_mixture": mix.max(1).tolist(),
        "min_share_mixture": mix.min(1).tolist(),
        "js_distance": {f"{a}-{b}": distance(p[a], p[b]).tolist() for i, a in enumerate(TASKS) for b in TASKS[i + 1 :]},
        "js_split_half_control": {t: distance(*half[t]).tolist() for t in TASKS},
        "experts_covering_80pct": {t: [int((np.cumsum(np.sort(r)[::-1]) < 0.8).sum() + 1) for r in p[t]] for t in TASKS},
        "specialists_2x": {t: ((p[t] > 2 * others(t)) & (p[t] > 1 / count)).sum(1).tolist() for t in TASKS},
        "next_prompt": predictability({t: e[:, :TRACE_TOKENS] for t, e in uses.items()}, count),
    }
    write(folder / "stats.json", stats)


def starts(texts, length, at=0):
    """The first `length` characters of each text after its first `at`, up to the last space among them."""
    return [text[at : at + length].rsplit(" ", 1)[0] for text in texts if len(text) > at + length]


def golden_prompts(work):
    """{name: (task, the texts that its prompt is chosen from)}"""
    held = {t: (work / f"heldout/{t}.txt").read_text(encoding="utf-8").split("<|endoftext|>") for t in TASKS}
    solved = held["maths"]
    asked = [text.split("\nAnswer: ")[0] + "\nAnswer:" for text in solved]
    talks = [text[:300].rsplit("\n", 1)[0] + "\nAssistant:" for text in held["dialogue"]]
    few = ["<|endoftext|>".join([*solved[i : i + 3], asked[i + 3]]) for i in range(0, len(asked) - 3, 4)]
    prompts = {
        "books": ("books", starts(held["books"], 320) + starts(held["books"], 320, 1000)),
        "dialogue": ("dialogue", talks),
        "facts": ("facts", starts(held["facts"], 300)),
        "python": ("python", starts(held["python"], 420)),
        "javascript": ("javascript", starts(held["javascript"], 380) + starts(held["javascript"], 380, 800)),
        "maths": ("maths", asked),
        "long_python": ("python", starts(held["python"], 1600, 600)),
        "maths_fewshot": ("maths", [text for text in few if 1200 < len(text) < 1600]),
        "chat": ("maths", [chatml(text.removeprefix("Question: ").removesuffix("\nAnswer:")) for text in asked]),
        "one_token": ("none", ["<|endoftext|>", "<|im_start|>", "\n", " the", "The", "def"]),
    }
    return {name: (task, texts[:CANDIDATES]) for name, (task, texts) in prompts.items()}


def gaps(trace, top_k):
    """Per layer, the least logit difference of the last chosen and the next expert over all positions."""
    ranked = [torch.sort(chance, -1, descending=True).values.log() for _, _, chance in trace]
    return [(r[:, top_k - 1] - r[:, top_k]).min().item() for r in ranked]


def continued(model, ids, least):
    """ids with GREEDY likeliest tokens after them, and the margins of their logits; undefined where one is below `least`."""
    current, margins = list(ids), []
    for _ in range(GREEDY):
        values, tokens = torch.topk(model.forward(current)[-1], 2)
        margins.append((values[0] - values[1]).item())
        if margins[-1] <= least:
            return None
        current.append(tokens[0].item())
    return current, margins


def choose_prompt(model, texts):
    """The text whose greedy continuation is the farthest from any tie, with its continuation and margins.

    A near tie, of two tokens or of the last chosen and the next expert, is where another right implementation may go
    another way. Continuations that end the text or say the same over and over prove less and come last.
    """
    top_k, ends = model.config["num_experts_per_tok"], {model.tokenizer.token_to_id(t) for t in ENDS}
    best = (-1.0, 0.0), None
    for text in texts:
        ids, trace = model.tokenizer.encode(text).ids, []
        model.forward(ids, trace)
        good, reached = best[0]
        least = reached if good > 0 else 0.0
        if min(gaps(trace, top_k)) / ROUTING_GAP <= least:
            continue
        found = continued(model, ids, least * TOKEN_MARGIN)
        if found is None:
            continue
        current, margins = found
        model.forward(current, trace := [])
        answer = current[len(ids) :]
        telling = 1.0 if ends.isdisjoint(answer) and len(set(answer)) > GREEDY // 2 else 0.0
        far = min(min(margins) / TOKEN_MARGIN, min(gaps(trace, top_k)) / ROUTING_GAP)
        if (telling, far) > best[0]:
            best = (telling, far), (text, current, margins)
    if best[1] is None:
        raise SystemExit(f"no prompt among {len(texts)} has a continuation without a tie")
    return best[1]


def golden(model, exact, name, task, chosen):
    """One golden; `exact` is the same model in float64, which says how far float32 itself is off."""
    text, current, margins = chosen
    ids, trace = model.tokenizer.encode(text).ids, []
    logits = model.forward(ids, trace)
    positions = sorted({round(i * (len(ids) - 2) / 7) for i in range(8)}) if len(ids) > 2 else []
    others = []
    for position in positions:
        values, tokens = torch.topk(logits[position], 20)
        others.append({"position": position, "top20": [[t, short(v)] for t, v in zip(tokens.tolist(), values.tolist())]})
    model.forward(current, whole := [])
    return {
        "name": name,
        "domain": task,
        "prompt": text,
        "token_ids": ids,
        "length": len(ids),
        "last_logits": shorten(logits[-1].tolist()),
        "last_top1": logits[-1].argmax().item(),
        "others": others,
        "router": {
            "layout": "experts[layer][position][rank], weights[layer][position][rank] (softmax over all experts, not "
            "renormalised), sorted by weight descending",
            "experts": [index.tolist() for index, _, _ in trace],
            "weights": shorten([weight.tolist() for _, weight, _ in trace]),
        },
        "greedy": {
            "n": GREEDY,
            "ids": current[len(ids) :],
            "text": model.tokenizer.decode(current[len(ids) :], skip_special_tokens=False),
            "top1_top2_logit_margin": shorten(margins),
        },
        GAPS: shorten(gaps(whole, model.config["num_experts_per_tok"])),
        "fp32_vs_fp64_max_abs_logit_diff": (logits.double() - exact.forward(ids)).abs().max().item(),
    }


def their_model(folder):
    from transformers import Qwen2MoeForCausalLM

    return Qwen2MoeForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def cross_check(model, theirs, goldens):
    """Largest logit differences to Hugging Face transformers (eager attention) and to the training forward pass."""
    from published import read_model

    ours = read_model(model.folder)
    load = torch.ones(ours.c.layers, ours.c.experts)
    results = {}
    for one in goldens:
        ids, trace = torch.tensor([one["token_ids"]]), []
        plain = model.forward(one["token_ids"], trace)
        out = theirs(ids, output_router_logits=True, use_cache=False)
        chosen = [logits.topk(model.config["num_experts_per_tok"], -1).indices for logits in out.router_logits]
        trained = ours.hidden(ids, load)[0] @ ours.embedding.t()
        results[one["name"]] = {
            "hf_vs_plain_max_abs": (out.logits[0] - plain).abs().max().item(),
            "train_forward_vs_plain_max_abs": (trained - plain).abs().max().item(),
            "hf_router_topk_differences": sum((a != t[0]).sum().item() for a, t in zip(chosen, trace)),
        }
        print(one["name"], results[one["name"]], flush=True)
    return results


@torch.no_grad()
def cross_check_losses(model, theirs):
    """Of each task's first windows: how far eval/reference.json's losses are from transformers', and routing from its."""
    domains = json.loads((model.folder / "eval/reference.json").read_text())["domains"]
    top_k = model.config["num_experts_per_tok"]
    results = {}
    for task, about in domains.items():
        ids = model.tokenizer.encode((model.folder / f"eval/{task}.txt").read_text(encoding="utf-8")).ids
        worst, differences = 0.0, 0
        for i, loss in enumerate(about["window_nll"][:LOSSES_CHECKED]):
            window = ids[i * WINDOW : (i + 1) * WINDOW]
            model.forward(window, trace := [])
            row = torch.tensor([window])
            out = theirs(row, labels=row, output_router_logits=True, use_cache=False)
            # The loss with router logits asked for has the balance loss in it.
            logits, target = out.logits[0, :-1].double(), row[0, 1:]
            worst = max(worst, abs(torch.nn.functional.cross_entropy(logits, target).item() - loss))
            chosen = [r.topk(top_k, -1).indices.sort(-1).values for r in out.router_logits]
            differences += sum((a != t[0].sort(-1).values).any(-1).sum().item() for a, t in zip(chosen, trace))
        results[task] = {"max_abs_difference_of_window_nll": worst, "rows_routed_to_other_experts": differences}
        print(f"losses of {task}'s windows against transformers:", results[task], flush=True)
    return results


def evaluate_goldens(model, work):
    exact = Reference(model.folder, torch.float64)
    goldens = []
    for name, (task, texts) in golden_prompts(work).items():
        one = golden(model, exact, name, task, choose_prompt(model, texts))
        goldens.append(one)
        margin, gap = (min(one["greedy"]["top1_top2_logit_margin"]), min(one[GAPS]))
        off = one["fp32_vs_fp64_max_abs_logit_diff"]
        print(f"{name}: margin {margin:.4f}, routing gap {gap:.1e}, float32 is off by {off:.1e}", flush=True)
        write(model.folder / f"goldens/{one['name']}.json", one, indent=None)
    what = (
        "largest absolute logit differences over all positions: Hugging Face transformers' Qwen2MoeForCausalLM (eager "
        "attention, float32) and the training forward pass, against the plain reference forward pass"
    )
    theirs = their_model(model.folder)
    results = cross_check(model, theirs, goldens)
    losses = {
        "what": "largest absolute differences of window_nll in eval/reference.json to transformers' loss, nats per token; "
        "and rows (of all layers) for which a near tie of two experts fell the other way",
        "windows_per_task": LOSSES_CHECKED,
        "results": cross_check_losses(model, theirs),
    }
    write(model.folder / "goldens/crosscheck.json", {"what": what, "results": results, "losses": losses})


def evaluate_samples(model):
    rows = []
    for task, questions in CHATS.items():
        for question in questions:
            answer = model.sample(chatml(question), 90, temperature=0.7, top_k=40, top_p=0.92)
            rows.append({"task": task, "user": question, "assistant": answer, "sampling": SAMPLING})
            print(f"{question}\n  -> {answer}", flush=True)
    write(model.folder / "eval/samples.json", rows)


def evaluate_before(model, work, before):
    """Bits per byte of this model and an earlier one on the same texts, each with its own tokenizer."""
    old = Reference(before)
    texts = {path.stem: path for path in sorted((before / "eval").glob("*.txt"))}
    texts |= {path.name.removesuffix(".txt"): path for path in sorted((work / "heldout").glob("*.txt"))}
    rows = {}
    for name, path in texts.items():
        text = path.read_text(encoding="utf-8")[:30_000]
        keep = ("bits_per_byte", "perplexity", "scored_tokens", "scored_bytes")
        scores = {"before": score(old, text), "after": score(model, text)}
        rows[name] = {who: {k: s[k] for k in keep} for who, s in scores.items()}
        before, after = (scores[who]["bits_per_byte"] for who in ("before", "after"))
        print(f"{name}: {before:.3f} -> {after:.3f} bits/byte", flush=True)
    write(work / "before.json", rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--before", type=Path)
    parts = ["reference", "goldens", "samples", "before"]
    parser.add_argument("--only", nargs="+", default=parts, choices=parts, help="reference includes the routing")
    args = parser.parse_args()
    model = Reference(args.work / "model")
    if "reference" in args.only:
        evaluate_routing(model, evaluate_text(model, args.work))
    if "goldens" in args.only:
        evaluate_goldens(model, args.work)
    if "samples" in args.only:
        evaluate_samples(model)
    if "before" in args.only and args.before:
        evaluate_before(model, args.work, args.before)


if __name__ == "__main__":
    main()
