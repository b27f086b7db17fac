"""Corpora -> documents, each tagged with its task, split into train and held-out.

    python prepare.py CORPORA WORK

CORPORA is the unpacked folder of corpora (one sub-folder each, with a README that names source and licence).
Writes WORK/train/<task>.jsonl ({"text", "chat"} per line), WORK/heldout/<task>.txt (about 100 kB of plain text,
documents joined by <|endoftext|>), WORK/heldout/<task>.chat.txt where the task has a chat form, and
WORK/data.json (sizes, names of the held-out documents, what was dropped as a near copy, licences).
"""

import argparse
import hashlib
import json
import random
import re
from pathlib import Path
from typing import NamedTuple

TASKS = ["books", "dialogue", "facts", "python", "javascript", "maths"]
END = "<|endoftext|>"
HELDOUT_BYTES = 100_000
RUN_WORDS = 12  # a train document that shares a run of this many words with a held-out one is dropped

HELDOUT_BOOKS = ["mary-shelley_frankenstein", "h-g-wells_the-war-of-the-worlds"]
# The files that the model before this recipe held out too, so that both can be measured on text new to them.
HELDOUT_STDLIB = """install_egg_info tabnanny posixpath distutils/core btm_matcher _aix_support command/sdist
popen_spawn_win32 curses/textpad abc numbers opcode fix_next multiprocessing/reduction""".split()
HELDOUT_ALGORITHMS, HELDOUT_JAVASCRIPT, HELDOUT_COUNTRIES = 24, 12, 12

FACT_QUESTIONS = {
    "Background": ["Tell me about {}.", "What is the history of {}?", "Give me some background on {}."],
    "Location": ["Where is {}?", "Where is {} located?"],
    "Climate": ["What is the climate of {}?", "What is the weather like in {}?"],
    "Terrain": ["What is the terrain of {} like?"],
    "Natural resources": ["What natural resources does {} have?"],
    "Natural hazards": ["Which natural hazards are there in {}?"],
    "Languages": ["Which languages are spoken in {}?", "What do people speak in {}?"],
    "Religions": ["Which religions are there in {}?"],
    "Ethnic groups": ["Which ethnic groups live in {}?"],
    "Economic overview": ["Describe the economy of {}.", "How is the economy of {}?"],
    "Industries": ["Which industries does {} have?"],
    "Exports - commodities": ["What does {} export?"],
    "Imports - commodities": ["What does {} import?"],
    "Exports - partners": ["To which countries does {} export?"],
    "Agricultural products": ["What is grown in {}?"],
    "Government type": ["What type of government does {} have?"],
    "Independence": ["When did {} become independent?"],
    "National holiday": ["What is the national holiday of {}?"],
    "Flag": ["What does the flag of {} look like?", "Describe the flag of {}."],
    "Population distribution": ["Where do people live in {}?"],
    "Legal system": ["What is the legal system of {}?"],
    "Area - comparative": ["How large is {}?"],
    "Geography - note": ["What is special about the geography of {}?"],
    "Environmental issues": ["Which environmental issues does {} face?"],
}


def rank(name):
    """A fixed pseudo-random number for a name, the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def plain_characters(text):
    """Typographic quotes and spaces as the ones on a keyboard; joiners dropped."""
    table = {"’": "'", "‘": "'", "“": '"', "”": '"', "\u00a0": " ", "\u202f": " "}
    table |= dict.fromkeys(["\u200a", "\u2060", "\ufeff"], "")
    return text.translate(str.maketrans(table))


def chat(turns, rng):
    """ChatML of [(role, text)]; every seventh conversation opens with a system message."""
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if rng.random() < 1 / 7 else ""
    return head + "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)


def pieces(text, size):
    """Splits at line ends into parts of about `size` characters."""
    part, length = [], 0
    for line in text.split("\n"):
        part.append(line)
        length += len(line) + 1
        if length >= size:
            yield "\n".join(part)
            part, length = [], 0
    if length > 200:
        yield "\n".join(part)


def json_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def source_files(path):
    """(name, text) of a NUL-separated dump whose parts begin with a line `# file: name`."""
    for part in path.read_text(encoding="utf-8", errors="replace").split("\0"):
        head, _, body = part.partition("\n")
        if body.strip() and "�" not in body:
            yield head.split("file: ")[1], head + "\n" + body.replace("\r\n", "\n")


class Document(NamedTuple):
    source: str
    name: str
    heldout: bool
    plain: str | None
    talk: str | None = None  # the chat form


def read_books(root, rng):
    for path in sorted((root / "standardebooks").glob("*.txt")):
        text = plain_characters(path.read_text(encoding="utf-8"))
        yield Document("standardebooks", path.stem, path.stem in HELDOUT_BOOKS, text)


def read_dialogue(root, rng):
    for split in ["train", "test"]:
        for talk in json_lines(root / f"sgd_dialogue/{split}.jsonl"):
            turns = [("user" if who == "USER" else "assistant", plain_characters(text)) for who, text in talk["turns"]]
            plain = "\n".join(f"{role.capitalize()}: {text}" for role, text in turns)
            yield Document("sgd_dialogue", talk["id"], split != "train", plain, chat(turns, rng))


def fact_talk(country, entry, rng):
    """One conversation about a country: one to three questions that its fields answer."""
    fields = {k: v.strip() for k, v in (line.split(":", 1) for line in entry.split("\n") if ":" in line)}
    asked = [k for k in FACT_QUESTIONS if len(fields.get(k, "")) > 2]
    turns = []
    for key in rng.sample(asked, min(len(asked), rng.choice([1, 1, 2, 3]))):
        answer = fields[key] if len(fields[key]) < 900 else fields[key][:900].rsplit(". ", 1)[0] + "."
        turns += [("user", rng.choice(FACT_QUESTIONS[key]).format(country)), ("assistant", re.sub(" +", " ", answer))]
    return chat(turns, rng) if turns else None


def read_facts(root, rng):
    text = plain_characters((root / "factbook/factbook.txt").read_text(encoding="utf-8"))
    entries = re.findall(r"^= (.+?) =\n(.*?)(?=^= |\Z)", text, re.S | re.M)
    heldout = sorted((name for name, body in entries if len(body) > 15_000), key=rank)[:HELDOUT_COUNTRIES]
    for name, body in entries:
        body = re.sub(" {2,}", " ", body.strip())
        yield Document("factbook", name, name in heldout, f"= {name} =\n{body}")
        for i in range(16 if name != "none" else 0):  # questions about the same entry
            talk = fact_talk(name, body, rng)
            if talk:
                yield Document("factbook", f"{name} (talk {i})", name in heldout, None, talk)


def read_python(root, rng):
    for name, text in source_files(root / "code_cpython_stdlib/all.py.txt"):
        stem = name.removesuffix(".py")
        held = any(stem == part or stem.endswith("/" + part) for part in HELDOUT_STDLIB)
        if held or len(text) < 200_000:  # the few larger files are tables
            yield Document("code_cpython_stdlib", name, held, text)
    files = [f for f in source_files(root / "code_thealgorithms/all.py.txt") if len(f[1]) > 300]
    chosen = sorted((name for name, text in files if len(text) > 1500), key=rank)[:HELDOUT_ALGORITHMS]
    for name, text in files:
        yield Document("code_thealgorithms", name, name in chosen, text)


def read_javascript(root, rng):
    files = []
    for name, text in source_files(root / "code_js_pdfjs/all.txt"):
        head, _, body = text.partition("\n")
        body = re.sub(r"\A\s*/\*.*?\*/\s*", "", body, flags=re.S)  # the licence, the same in every file
        if len(body) > 300:
            files.append((name, head + "\n" + body))
    chosen = sorted((name for name, text in files if 4_000 < len(text) < 25_000), key=rank)[:HELDOUT_JAVASCRIPT]
    for name, text in files:
        yield Document("code_js_pdfjs", name, name in chosen, text)


def read_maths(root, rng):
    def forms(question, answer):
        question, answer = plain_characters(question), plain_characters(answer)
        return f"Question: {question}\nAnswer: {answer}", chat([("user", question), ("assistant", answer)], rng)

    for split in ["test", "train"]:
        for i, row in enumerate(json_lines(root / f"gsm8k/{split}.jsonl")):
            answer = re.sub(r"<<.*?>>", "", row["answer"])
            yield Document("gsm8k", f"gsm8k {split} {i}", split == "test", *forms(row["question"], answer))
    for split in ["test_interpolate", "train"]:
        for i, row in enumerate(json_lines(root / f"math_synth/{split}.jsonl")):
            both = forms(row["question"], row["answer"])
            yield Document("math_synth", f"math_synth {split} {i}", split != "train", *both)


READERS = {
    "books": (read_books, 0.0),
    "dialogue": (read_dialogue, 0.7),  # the share of documents that are trained on in their chat form
    "facts": (read_facts, 1.0),
    "python": (read_python, 0.0),
    "javascript": (read_javascript, 0.0),
    "maths": (read_maths, 0.5),
}


def runs(text):
    """The set of hashes of all runs of RUN_WORDS words."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i : i + RUN_WORDS])) for i in range(len(words) - RUN_WORDS + 1)}


def measured_part(task, documents):
    """Of the held-out documents what is measured, [(document, its text)]: HELDOUT_BYTES in all, as much of each source.

    Of books, facts and JavaScript an equal share of each document; of the others whole documents until there is enough.
    """
    sources = list(dict.fromkeys(d.source for d in documents))
    out = []
    for source in sources:
        group = [d for d in documents if d.source == source]
        room = HELDOUT_BYTES // len(sources)
        share = room // len(group)
        for document in group:
            text = document.plain
            if task == "books":  # from the middle, and from the begin of a paragraph
                text = text[len(text) // 3 :][:share].partition("\n")[2]
            elif task in ("facts", "javascript"):
                text = text[:share]
            if room < len(text.encode()) // 2:
                break
            room -= len(text.encode())
            out.append((document, text))
    return out


def training_parts(task, document, forbidden):
    """What may be trained on of a document, and how much of it shares a run of words with `forbidden`.

    A book is cut into pieces and an entry of facts into lines, which are judged one by one; others as a whole.
    """
    if task == "facts" and document.plain:
        lines = document.plain.split("\n")
        kept = [line for line in lines if not forbidden & runs(line)]
        return ["\n".join(kept)], len(lines) - len(kept)
    parts = list(pieces(document.plain, 8000)) if task == "books" else [document.plain or document.talk]
    kept = [part for part in parts if not forbidden & runs(part)]
    return kept, len(parts) - len(kept)


def write_text(path, texts):
    path.write_text(END.join(texts), encoding="utf-8", newline="")


def prepare_task(task, corpora, work):
    """Writes one task's files; returns what data.json says of it."""
    rng = random.Random(task)
    reader, chat_share = READERS[task]
    documents = list(reader(corpora, rng))
    heldout = [d for d in documents if d.heldout]
    measured = measured_part(task, [d for d in heldout if d.plain])
    forbidden = set().union(*(runs(text) for _, text in measured))
    train, dropped = [], 0
    for document in documents:
        if document.heldout:
            continue
        parts, lost = training_parts(task, document, forbidden)
        dropped += lost
        for part in parts:
            as_chat = document.talk is not None and (document.plain is None or rng.random() < chat_share)
            train.append({"text": document.talk if as_chat else part, "chat": as_chat})
    rng.shuffle(train)
    with open(work / f"train/{task}.jsonl", "w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in train)
    write_text(work / f"heldout/{task}.txt", [text for _, text in measured])
    names = [d.name for d, _ in measured]
    talks, size = [], 0
    for document in heldout:
        if document.talk and (document.plain is None or document.name in names) and size < HELDOUT_BYTES // 2:
            talks.append(document.talk)
            size += len(document.talk.encode())
    if talks:
        write_text(work / f"heldout/{task}.chat.txt", talks)
    return {
        "documents": len(train),
        "bytes": sum(len(row["text"].encode()) for row in train),
        "chat_bytes": sum(len(row["text"].encode()) for row in train if row["chat"]),
        "heldout": names if len(names) < 60 else f"{len(names)} documents",
        "heldout_bytes": sum(len(text.encode()) for _, text in measured),
        "dropped_for_shared_runs": dropped,
    }


def prepare(corpora, work):
    (work / "train").mkdir(parents=True, exist_ok=True)
    (work / "heldout").mkdir(exist_ok=True)
    about = {"tasks": {}, "licences": {}}
    for readme in sorted(corpora.glob("*/README.md")):
        about["licences"][readme.parent.name] = re.findall(r"^- ((?:source|paths|licence).*)$", readme.read_text(), re.M)
    for task in TASKS:
        about["tasks"][task] = prepare_task(task, corpora, work)
        print(task, {k: v for k, v in about["tasks"][task].items() if k != "heldout"}, flush=True)
    (work / "data.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpora", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    prepare(args.corpora, args.work)
