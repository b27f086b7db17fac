"""Hugging Face transformers as a contender's process: transformers_run.py MODEL DTYPE.

Requests are lines of JSON on stdin ({"prompts": [[id]], "numTokens": n}), answers lines on stdout; see child-contender.ts.
A plain loop over the model's own forward with its own cache: what `generate` does, without what it does around it.
"""

import json
import os
import sys
import time

# Nothing is looked up outside of the model's directory.
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers

model_directory, dtype_name = sys.argv[1:]
cuda = torch.cuda.is_available()
device = torch.device("cuda" if cuda else "cpu")
if dtype_name == "auto":
    dtype_name = "bfloat16" if cuda else "float32"
model = transformers.AutoModelForCausalLM.from_pretrained(
    model_directory, dtype=getattr(torch, dtype_name), local_files_only=True
)
model = model.to(device).eval()


def answer(line):
    print(json.dumps(line), flush=True)


def now():
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


@torch.inference_mode()
def generate(prompts, num_tokens):
    """Greedy; all prompts have one length, so that nothing is padded."""
    if len({len(prompt) for prompt in prompts}) != 1:
        raise ValueError("prompts of different lengths")
    start = now()
    out = model(torch.tensor(prompts, device=device), use_cache=True, logits_to_keep=1)
    ids = [out.logits[:, -1].argmax(-1)]
    ids[0].tolist()  # the caller would have it by now
    prefilled = now()
    for _ in range(num_tokens - 1):
        out = model(ids[-1][:, None], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        ids.append(out.logits[:, -1].argmax(-1))
        ids[-1].tolist()
    done = now()
    return {
        "tokenIds": torch.stack(ids, dim=1).tolist(),
        "prefillMs": prefilled - start,
        "decodedTokens": (num_tokens - 1) * len(prompts),
        "decodeMs": done - prefilled,
    }


name = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
details = f"{dtype_name}, transformers {transformers.__version__}, torch {torch.__version__}, eager loop"
answer({"ready": {"device": name, "details": details}})
for line in sys.stdin:
    try:
        request = json.loads(line)
        answer({"generation": generate(request["prompts"], request["numTokens"])})
    except Exception as error:  # the bench reports it and goes on with the others
        answer({"error": repr(error)})
