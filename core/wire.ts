/** The hop's payloads: rows, ids and sums to and from the messages of expert.proto, with every size and checksum judged. */

import { crc32 } from "node:zlib";

import type { Placement } from "../proto/gen/switchyard/v1/cluster.ts";
import type { Dispatch, PartialSum } from "../proto/gen/switchyard/v1/expert.ts";
import { DispatchErrorCode, WireDtype } from "../proto/gen/switchyard/v1/expert.ts";
import { packInt8Rows, unpackInt8Rows } from "./int8-rows.ts";
import { bytesOf, F16_MAX, f16FromBytes, f32FromBytes, u16FromBytes } from "./tensor.ts";

/** Version of the wire contract; both ends of a hop must have the same. */
export const PROTOCOL_VERSION = 2;

/** Expert id of a row's expert that is on another shard. */
export const NO_EXPERT = 65535;

/** Rows of one dispatch at most; far more than a step has. */
export const MAX_DISPATCH_ROWS = 65536;

/** --wire: the dtype of the rows that experts get, on shards or on the router itself. */
export type WireSetting = "f16" | "f32" | "int8";

/** A dispatch that a shard does not answer, or an answer that a router does not take; never a wrong result. */
export class DispatchRefusedError extends Error {
  override readonly name = "DispatchRefusedError";
  readonly code: DispatchErrorCode;
  constructor(code: DispatchErrorCode, message: string) {
    super(message);
    this.code = code;
  }
}

/** Rows of one layer for one shard, on the host. */
export interface DispatchRows {
  /** Hidden states [numRows, hiddenSize] */
  readonly rows: Float32Array;
  /** Logical expert ids [numRows, topK]; NO_EXPERT where the row's expert is on another shard. */
  readonly expertIds: Uint16Array;
  /** Mix weights [numRows, topK] */
  readonly topkWeights: Float32Array;
}

/** What a dispatch says beside its rows. */
export interface DispatchHeader {
  readonly dispatchId: number;
  readonly epoch: number;
  readonly layer: number;
  readonly timeoutMs: number;
  readonly hiddenSize: number;
  readonly topK: number;
  readonly traceparent: string;
}

/**
 * Packs rows into a message. It is f32 whatever `wire` says where f16 does not hold a value, as it is beyond ±65504, or
 * where rows are not exact in int8.
 */
export function encodeDispatch(
  header: DispatchHeader,
  payload: DispatchRows,
  wire: WireSetting,
): Dispatch {
  const { rows } = payload;
  const { dtype, hiddenStates, rowScales } = packRows(rows, header.hiddenSize, wire);
  const message: Dispatch = {
    ...header,
    numRows: rows.length / header.hiddenSize,
    dtype,
    hiddenStates,
    rowScales,
    expertIds: bytesOf(payload.expertIds),
    topkWeights: bytesOf(payload.topkWeights),
    crc32: 0,
  };
  message.crc32 = dispatchCrc(message);
  return message;
}

function packRows(
  rows: Float32Array,
  hiddenSize: number,
  wire: WireSetting,
): Pick<Dispatch, "dtype" | "hiddenStates" | "rowScales"> {
  const int8 = wire === "int8" ? packInt8Rows(rows, hiddenSize) : undefined;
  if (int8 !== undefined) {
    return {
      dtype: WireDtype.WIRE_DTYPE_INT8,
      hiddenStates: bytesOf(int8.values),
      rowScales: bytesOf(int8.scales),
    };
  }
  const half = wire === "f16" && fitsF16(rows);
  return {
    dtype: half ? WireDtype.WIRE_DTYPE_F16 : WireDtype.WIRE_DTYPE_F32,
    hiddenStates: bytesOf(half ? new Float16Array(rows) : rows),
    rowScales: new Uint8Array(0),
  };
}

/** Bytes of a value of each dtype. */
const VALUE_BYTES = {
  [WireDtype.WIRE_DTYPE_F16]: 2,
  [WireDtype.WIRE_DTYPE_F32]: 4,
  [WireDtype.WIRE_DTYPE_INT8]: 1,
} as const;

/** Widths that a dispatch must have, and how many rows it may have. */
export interface DispatchLimits {
  readonly hiddenSize: number;
  readonly topK: number;
  readonly maxRows: number;
}

/** Unpacks a message. Throws DispatchRefusedError CHECKSUM or INVALID naming the field, its value and the expectation. */
export function decodeDispatch(message: Dispatch, limits: DispatchLimits): DispatchRows {
  const crc = dispatchCrc(message);
  if (crc !== message.crc32) throw badChecksum("dispatch", message.crc32, crc);
  const { numRows, hiddenSize, topK, dtype } = message;
  expectValue("hidden_size", hiddenSize, limits.hiddenSize);
  expectValue("top_k", topK, limits.topK);
  if (numRows < 1 || numRows > limits.maxRows) {
    throw invalid(`num_rows ${numRows}, expected 1 to ${limits.maxRows}`);
  }
  if (!(dtype in VALUE_BYTES)) throw invalid(`dtype ${dtype}, expected F16, F32 or INT8`);
  const known = dtype as keyof typeof VALUE_BYTES;
  const rowBytes = hiddenSize * VALUE_BYTES[known];
  const scaleBytes = dtype === WireDtype.WIRE_DTYPE_INT8 ? 4 * numRows : 0;
  expectValue("bytes of hidden_states", message.hiddenStates.length, numRows * rowBytes);
  expectValue("bytes of row_scales", message.rowScales.length, scaleBytes);
  expectValue("bytes of expert_ids", message.expertIds.length, numRows * topK * 2);
  expectValue("bytes of topk_weights", message.topkWeights.length, numRows * topK * 4);
  return {
    rows: unpackRows(message, known),
    expertIds: u16FromBytes(message.expertIds),
    topkWeights: f32FromBytes(message.topkWeights),
  };
}

function unpackRows(message: Dispatch, dtype: keyof typeof VALUE_BYTES): Float32Array {
  const { hiddenStates, hiddenSize, rowScales } = message;
  switch (dtype) {
    case WireDtype.WIRE_DTYPE_F16:
      return new Float32Array(f16FromBytes(hiddenStates));
    case WireDtype.WIRE_DTYPE_F32:
      return f32FromBytes(hiddenStates);
    case WireDtype.WIRE_DTYPE_INT8: {
      const { buffer, byteOffset, byteLength } = hiddenStates;
      const values = new Int8Array(buffer, byteOffset, byteLength);
      return unpackInt8Rows({ values, scales: f32FromBytes(rowScales) }, hiddenSize);
    }
  }
}

/** How long a shard took over a dispatch, microseconds. */
export interface ShardTimes {
  readonly queueUs: number;
  readonly computeUs: number;
}

/** Packs the partial sums [numRows, hiddenSize] of a dispatch. */
export function encodePartialSum(
  dispatchId: number,
  numRows: number,
  sums: Float32Array,
  times: ShardTimes,
): PartialSum {
  const message: PartialSum = { dispatchId, numRows, sums: bytesOf(sums), crc32: 0, ...times };
  message.crc32 = partialSumCrc(message);
  return message;
}

/** Unpacks partial sums [numRows, hiddenSize]. Throws DispatchRefusedError CHECKSUM or INVALID. */
export function decodePartialSum(
  message: PartialSum,
  numRows: number,
  hiddenSize: number,
): Float32Array {
  const crc = partialSumCrc(message);
  if (crc !== message.crc32) throw badChecksum("partial sum", message.crc32, crc);
  expectValue("num_rows of a partial sum", message.numRows, numRows);
  expectValue("bytes of sums", message.sums.length, numRows * hiddenSize * 4);
  return f32FromBytes(message.sums);
}

/** CRC-32 of a dispatch as expert.proto defines it. */
export function dispatchCrc(message: Dispatch): number {
  const { layer, timeoutMs, numRows, hiddenSize, topK, dtype } = message;
  let crc = crcOfU64(message.dispatchId, 0);
  crc = crcOfU64(message.epoch, crc);
  crc = crcOfU32s([layer, timeoutMs, numRows, hiddenSize, topK, dtype], crc);
  crc = crc32(message.hiddenStates, crc);
  crc = crc32(message.expertIds, crc);
  crc = crc32(message.topkWeights, crc);
  return crc32(message.rowScales, crc);
}

/** CRC-32 of a partial sum as expert.proto defines it. */
function partialSumCrc(message: PartialSum): number {
  return crc32(message.sums, crcOfU32s([message.numRows], crcOfU64(message.dispatchId, 0)));
}

/** CRC-32 of a placement as cluster.proto defines it. */
export function placementCrc(placement: Placement): number {
  let crc = crcOfU64(placement.epoch, 0);
  crc = crcOfU64(placement.oldestLiveEpoch, crc);
  crc = crcOfU32s([placement.weights, placement.expertFormat, placement.layers.length], crc);
  for (const { layer, experts } of placement.layers) {
    crc = crcOfU32s([layer, experts.length], crc);
    for (const { expertId, format, splitWeight } of experts) {
      crc = crcOfU32s([expertId, format], crc);
      crc = crc32(bytesOf(Float32Array.of(splitWeight)), crc);
    }
  }
  return crc;
}

function crcOfU64(value: number, crc: number): number {
  return crc32(bytesOf(BigUint64Array.of(BigInt(value))), crc);
}

function crcOfU32s(values: readonly number[], crc: number): number {
  return crc32(bytesOf(Uint32Array.from(values)), crc);
}

function fitsF16(rows: Float32Array): boolean {
  for (const value of rows) if (value > F16_MAX || value < -F16_MAX) return false;
  return true;
}

function expectValue(what: string, value: number, expected: number): void {
  if (value !== expected) throw invalid(`${what} ${value}, expected ${expected}`);
}

function invalid(message: string): DispatchRefusedError {
  return new DispatchRefusedError(DispatchErrorCode.DISPATCH_ERROR_CODE_INVALID, message);
}

function badChecksum(what: string, stated: number, computed: number): DispatchRefusedError {
  return new DispatchRefusedError(
    DispatchErrorCode.DISPATCH_ERROR_CODE_CHECKSUM,
    `crc32 of the ${what} is ${computed.toString(16)}, it states ${stated.toString(16)}`,
  );
}
