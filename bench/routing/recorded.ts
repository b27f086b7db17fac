/**
 * Recorded routing of DeepSeek-V2-Lite on three tasks: every token of some 8,300 of each. From the expert scores that
 * deepseek-ai/ESFT publishes (code MIT, weights under the DeepSeek model licence).
 *
 * A file is brotli over: number of sequence offsets u32 LE; offsets u32 LE, the last is numTokens; experts of each token
 * and MoE layer, ascending, u8 [numTokens, 26, 6].
 */

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { brotliDecompressSync } from "node:zlib";

/** The tasks that were recorded. */
export const RECORDED_TASKS = ["intent", "law", "summary"] as const;

/** One of the RECORDED_TASKS. */
export type RecordedTask = (typeof RECORDED_TASKS)[number];

/** The recorded model: its MoE layers are 1 to 26. */
export const RECORDED_SHAPE = {
  modelName: "deepseek-v2-lite",
  layers: Array.from({ length: 26 }, (_, i) => i + 1),
  numExperts: 64,
  topK: 6,
} as const;

/** Routing of one task's sequences, one after the other. */
export interface RecordedRouting {
  readonly task: RecordedTask;
  readonly numTokens: number;
  /** First token of each sequence, then numTokens. */
  readonly sequences: readonly number[];
  /** Experts, ascending [numTokens, 26, 6]. */
  readonly ids: Uint8Array;
}

/** Reads the routing of one task. */
export function readRecorded(task: RecordedTask): RecordedRouting {
  const file = join(import.meta.dirname, `deepseek-v2-lite-${task}.br`);
  const bytes = brotliDecompressSync(readFileSync(file));
  const count = bytes.readUInt32LE(0);
  const sequences = Array.from({ length: count }, (_, i) => bytes.readUInt32LE(4 + 4 * i));
  const ids = new Uint8Array(bytes.subarray(4 + 4 * count));
  return { task, numTokens: sequences[count - 1], sequences, ids };
}
