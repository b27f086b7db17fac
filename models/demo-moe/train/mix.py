"""What a training step reads: windows of the tasks' token streams in fixed shares."""

import math

import numpy as np

from prepare import TASKS

WEIGHTS = {"books": 0.20, "dialogue": 0.14, "facts": 0.10, "python": 0.24, "javascript": 0.10, "maths": 0.22}
BLOCK = 256  # windows begin at multiples of this many tokens


class Stream:
    """Windows of one task in a fixed scattered order, each block once before any comes twice."""

    def __init__(self, path):
        self.tokens = np.fromfile(path, dtype=np.uint16)
        self.blocks = (len(self.tokens) - 1) // BLOCK
        self.stride = int(self.blocks * 0.6180339887) | 1
        while math.gcd(self.stride, self.blocks) > 1:
            self.stride += 2

    def window(self, number, length):
        """Window `number` of `length` + 1 tokens."""
        start = (number * self.stride) % self.blocks * BLOCK
        start = min(start, len(self.tokens) - length - 1)
        return self.tokens[start : start + length + 1].astype(np.int64)


def plan_step(step, tokens, long, used):
    """The window length of a step of about `tokens` tokens, and its windows as [(task, number in the task's stream)].

    long: whether windows may be longer than BLOCK. used: {task: blocks taken so far}, counted on here.
    """
    length = [512, 512, 256, 1024, 512, 512, 256, 2048][step % 8] if long else BLOCK
    count = max(tokens // length, 1)
    rng = np.random.RandomState(step)
    edges = np.cumsum([WEIGHTS[t] for t in TASKS])
    picks = np.searchsorted(edges, (rng.rand() + np.arange(count)) / count * edges[-1] * 0.999999)
    rows = []
    for task in rng.permutation([TASKS[p] for p in picks]):
        rows.append((str(task), used[task]))
        used[task] += max(length // BLOCK, 1)
    return length, rows
