/** Packs experts in a thread of its own; PackPool starts it. */

import { parentPort } from "node:worker_threads";

import type { PackAnswer, PackRequest } from "./pack-pool.ts";
import { packExpert } from "../weights.ts";
import type { PackedExpert } from "../expert-format.ts";

parentPort?.on("message", ({ name, weights, sizes, format }: PackRequest) => {
  let answer: PackAnswer;
  try {
    answer = { expert: packExpert(name, weights, sizes, format) };
  } catch (error) {
    const { name: kind, message } = error as Error;
    answer = { kind, message };
  }
  parentPort?.postMessage(answer, "expert" in answer ? buffersOf(answer.expert) : []);
});

/** What goes back without a copy. */
function buffersOf({ gate, up, down, biases }: PackedExpert): ArrayBuffer[] {
  const matrices = [gate, up, down].flatMap(({ weights, scales }) => [weights, scales]);
  const vectors = biases === undefined ? [] : [biases.gate, biases.up, biases.down];
  return [...matrices, ...vectors].map(({ buffer }) => buffer);
}
