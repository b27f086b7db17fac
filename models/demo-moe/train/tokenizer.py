"""Byte-level BPE tokenizer: trained fresh, or by continuing the merges of an earlier one.

    python tokenizer.py WORK ENTRIES [--base DIR]

Continuing keeps all merges of DIR/tokenizer.json and learns further ones on top: every new token is the concatenation
of two older ones, so that a model can be grown with it (grow.py). Special tokens are the last entries. Writes
WORK/model/tokenizer.json and tokenizer_config.json and prints the bytes per token on the held-out texts.
"""

import argparse
import collections
import heapq
import json
from pathlib import Path

import regex
from tokenizers import Tokenizer

from mix import WEIGHTS
from prepare import TASKS

# Qwen2's split pattern: words keep one leading space, digits stand alone.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_alphabet():
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}


BYTES = byte_alphabet()


def word_counts(work):
    """{word in the byte alphabet: weighted count} over the training texts."""
    split, special = regex.compile(PATTERN), regex.compile("|".join(map(regex.escape, SPECIALS)))
    total = collections.Counter()
    for task in TASKS:
        counts = collections.Counter()
        for line in open(work / f"train/{task}.jsonl", encoding="utf-8"):
            for part in special.split(json.loads(line)["text"]):
                counts.update(split.findall(part))
        scale = WEIGHTS[task] * 2e7 / sum(len(w.encode()) * n for w, n in counts.items())
        for word, n in counts.items():
            if len(word) <= 40 and n > 1:
                total["".join(BYTES[b] for b in word.encode())] += n * scale
    return {word: count for word, count in total.items() if count >= 1}


def pairs(word):
    return zip(word, word[1:])


def merged(word, left, right):
    """`word` (a list of tokens) with every occurrence of left+right joined."""
    out = []
    for token in word:
        if out and out[-1] == left and token == right:
            out[-1] = left + right
        else:
            out.append(token)
    return out


def apply_merges(word, ranks):
    """Splits a word by the merges of an earlier tokenizer (the lowest rank first)."""
    word = list(word)
    while len(word) > 1:
        best = min(pairs(word), key=lambda p: ranks.get(p, 1 << 30))
        if best not in ranks:
            break
        word = merged(word, *best)
    return word


def learn(counts, entries, old_merges):
    """Learns merges on top of `old_merges` until alphabet + merges + specials = `entries`; returns all merges."""
    merges = list(old_merges)
    ranks = {pair: i for i, pair in enumerate(merges)}
    known = set(BYTES.values()) | {a + b for a, b in merges}
    words = [apply_merges(word, ranks) for word in counts]
    weight = list(counts.values())
    total, where = collections.Counter(), collections.defaultdict(set)
    for i, word in enumerate(words):
        for pair in pairs(word):
            total[pair] += weight[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in total.items()]
    heapq.heapify(heap)
    while len(known) < entries - len(SPECIALS):
        count, pair = heapq.heappop(heap)
        if abs(total.get(pair, 0) + count) > 1e-6:
            continue  # an entry that a later count has replaced
        if "".join(pair) in known:  # the same string by another path: its pair is never merged
            total.pop(pair)
            continue
        merges.append(pair)
        known.add("".join(pair))
        changed = set()
        for i in where.pop(pair):
            before, words[i] = words[i], merged(words[i], *pair)
            for p in pairs(before):
                total[p] -= weight[i]
                changed.add(p)
            for p in pairs(words[i]):
                total[p] += weight[i]
                where[p].add(i)
                changed.add(p)
        total.pop(pair, None)
        for p in changed - {pair}:
            if total[p] > 1e-6:
                heapq.heappush(heap, (-total[p], p))
    return merges


def tokenizer_files(merges):
    """The contents of tokenizer.json and tokenizer_config.json."""
    alphabet = [BYTES[b] for b in sorted(BYTES, key=lambda b: ord(BYTES[b]))]
    vocab = {token: i for i, token in enumerate([*alphabet, *(a + b for a, b in merges)])}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": len(vocab) + i, "content": s, **flags} for i, s in enumerate(SPECIALS)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [f"{a} {b}" for a, b in merges],
        },
    }
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(a["id"]): {k: v for k, v in a.items() if k != "id"} for a in added},
        "additional_special_tokens": SPECIALS[1:],
        "bos_token": None,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIALS[0],
        "errors": "replace",
        "model_max_length": 2048,
        "pad_token": SPECIALS[0],
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return tokenizer, config


def read_merges(folder):
    """The merges of a tokenizer.json, in order."""
    merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
    return [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in merges]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("work", type=Path)
    args.add_argument("entries", type=int)
    args.add_argument("--base", type=Path, help="a model folder whose merges are kept and continued")
    args = args.parse_args()
    merges = learn(word_counts(args.work), args.entries, read_merges(args.base) if args.base else [])
    folder = args.work / "model"
    folder.mkdir(exist_ok=True)
    for name, content in zip(["tokenizer.json", "tokenizer_config.json"], tokenizer_files(merges)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for task in TASKS:
        text = (args.work / f"heldout/{task}.txt").read_text(encoding="utf-8")
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text, task
        print(f"{task}: {len(text.encode()) / len(ids):.3f} bytes/token", flush=True)


if __name__ == "__main__":
    main()
