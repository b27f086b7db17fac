/** The identity of a checkpoint, without reading it whole. */

import { createHash } from "node:crypto";

import { isJsonObject, type JsonObject } from "./json-file.ts";

/** Bytes of one sample of the data. */
const PIECE_BYTES = 64;
/** One byte in so many is read ... */
const BYTES_PER_SAMPLED_BYTE = 1024;
/** ... but never more than this. */
const MAX_SAMPLED_BYTES = 64 * 1024;
/** Fraction of a tensor at which consecutive tensors' samples advance: the golden ratio's, so that they spread evenly. */
const GOLDEN = 0.6180339887498949;

/** A tensor as the hash sees it. */
export interface HashedTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly numBytes: number;
  /** Reads `length` bytes from the tensor's byte `offset` on. */
  read(offset: number, length: number): Promise<Uint8Array>;
}

/** A stretch of one tensor's data. */
export interface Piece {
  readonly tensor: number;
  readonly offset: number;
  readonly length: number;
}

/**
 * SHA-256, hex, over the config's content, that of an overlay, the table of tensors and about a thousandth of their data, at most 64 KiB.
 * It does not depend on the order of keys or on how the tensors are spread over files.
 * @param tensors sorted by name
 */
export async function hashModel(
  config: JsonObject,
  tensors: readonly HashedTensor[],
  overlay?: JsonObject,
): Promise<string> {
  const hash = createHash("sha256");
  const table = tensors.map(({ name, dtype, shape }) => [name, dtype, shape]);
  const described = [canonical(config), table];
  if (overlay !== undefined) described.push(canonical(overlay));
  hash.update(JSON.stringify(described));
  for (const { tensor, offset, length } of samplePieces(tensors.map((entry) => entry.numBytes))) {
    hash.update(await tensors[tensor].read(offset, length));
  }
  return hash.digest("hex");
}

/**
 * The stretches of data that the hash reads, of tensors of these sizes: one half spread evenly over the bytes, so that
 * every large tensor counts; the other over the tensors, so that norms and gates count as well.
 */
export function samplePieces(sizes: readonly number[]): Piece[] {
  const total = sizes.reduce((sum, size) => sum + size, 0);
  const budget = Math.min(MAX_SAMPLED_BYTES, total / BYTES_PER_SAMPLED_BYTE);
  const numPieces = Math.ceil(budget / PIECE_BYTES);
  const overTensors = Math.min(Math.floor(numPieces / 2), sizes.length);
  const overBytes = numPieces - overTensors;

  const pieces: Piece[] = [];
  const add = (tensor: number, offset: number) => {
    // Whole 4-byte elements, so that a piece never begins with the noisy half of one.
    const start = Math.max(0, Math.min(Math.floor(offset / 4) * 4, sizes[tensor] - PIECE_BYTES));
    const length = Math.min(PIECE_BYTES, sizes[tensor] - start);
    if (length > 0) pieces.push({ tensor, offset: start, length });
  };
  let tensor = 0;
  let tensorBegin = 0;
  for (let i = 0; i < overBytes; i++) {
    const position = Math.floor((total * (i + 0.5)) / overBytes);
    while (position >= tensorBegin + sizes[tensor]) tensorBegin += sizes[tensor++];
    add(tensor, position - tensorBegin);
  }
  for (let i = 0; i < overTensors; i++) {
    const index = Math.floor((sizes.length * (i + 0.5)) / overTensors);
    add(index, sizes[index] * ((i * GOLDEN) % 1));
  }
  return pieces;
}

/** Levels of a config at most. */
const MAX_DEPTH = 64;

/** The value with every object as a list of its entries in the order of their keys. Throws RangeError where it is nested too deeply. */
function canonical(value: unknown, depth = 0): unknown {
  if (depth > MAX_DEPTH) throw new RangeError(`config.json is nested deeper than ${MAX_DEPTH}`);
  if (Array.isArray(value)) return value.map((entry) => canonical(entry, depth + 1));
  if (!isJsonObject(value)) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return { entries: entries.map(([key, entry]) => [key, canonical(entry, depth + 1)]) };
}
