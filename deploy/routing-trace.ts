/**
 * Reads recorded routing: a safetensors file with `topk_ids` [numTokens, numMoeLayers, topK], and, where a router recorded
 * it, `rest_ms` [2]: what steps took beside their MoE layers.
 */

import { SafetensorsFile } from "../core/model/checkpoint/safetensors.ts";
import type { RoutingTrace } from "./replay.ts";

const TENSOR = "topk_ids";
const REST = "rest_ms";

/** A trace, and what is known of the steps that it was recorded in. */
export interface RecordedTrace extends RoutingTrace {
  /** What a step of decodes alone took beside its MoE layers, at the median; undefined where that is not recorded. */
  readonly restMs: number | undefined;
}

/** What a trace has to fit. */
export interface TraceShape {
  readonly numMoeLayers: number;
  readonly numExperts: number;
  readonly topK: number;
}

/** A trace is not of the model's shape. */
export class TraceError extends Error {
  override readonly name = "TraceError";
}

/** Reads a trace. Throws TraceError where it does not fit the model, SafetensorsError where it can not be read. */
export async function readTrace(path: string, shape: TraceShape): Promise<RecordedTrace> {
  const file = await SafetensorsFile.open(path);
  try {
    const entry = file.tensors.get(TENSOR);
    if (entry === undefined) {
      const names = [...file.tensors.keys()].slice(0, 8).join(", ");
      throw new TraceError(`${path}: no tensor ${TENSOR}, it has ${names || "none"}`);
    }
    const [numTokens, ...row] = entry.shape;
    const expected = [shape.numMoeLayers, shape.topK];
    if (entry.shape.length !== 3 || row.join() !== expected.join()) {
      throw new TraceError(
        `${path}: ${TENSOR} is [${entry.shape.join(", ")}], the model's is [tokens, ${expected.join(", ")}]`,
      );
    }
    const bytes = await file.readBytes(TENSOR, 0, entry.end - entry.begin);
    const ids = idsOf(bytes, entry.dtype, path);
    const wrong = ids.findIndex((id) => id < 0 || id >= shape.numExperts);
    if (wrong >= 0) {
      throw new TraceError(
        `${path}: token ${Math.floor(wrong / (expected[0] * expected[1]))} chose expert ${ids[wrong]}, the model has ${shape.numExperts}`,
      );
    }
    return { numTokens, ids, restMs: await readRest(file, path) };
  } finally {
    await file.close();
  }
}

/** The first value of the tensor, the steps of decodes; undefined where there is no tensor, or it has no such steps. */
async function readRest(file: SafetensorsFile, path: string): Promise<number | undefined> {
  const entry = file.tensors.get(REST);
  if (entry === undefined) return undefined;
  if (entry.dtype !== "F32" || entry.shape.join() !== "2") {
    throw new TraceError(
      `${path}: ${REST} is ${entry.dtype} [${entry.shape.join(", ")}], expected F32 [2]`,
    );
  }
  const bytes = await file.readBytes(REST, 0, 8);
  const restMs = new DataView(bytes.buffer, bytes.byteOffset).getFloat32(0, true);
  if (Number.isNaN(restMs)) return undefined;
  if (restMs >= 0 && restMs < Infinity) return restMs;
  throw new TraceError(`${path}: ${REST} of decodes is ${restMs}, expected milliseconds`);
}

function idsOf(bytes: Uint8Array<ArrayBuffer>, dtype: string, path: string) {
  switch (dtype) {
    case "U8":
      return bytes;
    case "U16":
      return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
    case "I32":
      return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    default:
      throw new TraceError(`${path}: ${TENSOR} is in ${dtype}, expected U8, U16 or I32`);
  }
}
