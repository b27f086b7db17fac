/** The hop's payloads: rows, ids and sums to and from the messages of expert.proto, with every size and checksum judged. */

import { crc32 } from "node:zlib";

import type { ShardPlacement } from "../proto/gen/switchyard/v1/cluster.ts";
import type {
  Dispatch,
  FetchExpertRequest,
  PartialSum,
} from "../proto/gen/switchyard/v1/expert.ts";
import { DispatchErrorCode, ShardStatus, WireDtype } from "../proto/gen/switchyard/v1/expert.ts";
import { bytesOf, f32FromBytes, u16FromBytes } from "./tensor.ts";
import { bytesPerRow, isRowDtype, unpackRows, type WireRows } from "./wire-rows.ts";

/** Version of the wire contract; both ends of a hop must have the same. */
export const PROTOCOL_VERSION = 5;

/** Expert id of a row's expert that is on another shard. */
export const NO_EXPERT = 65535;

/** Rows of one dispatch at most; far more than a step has. */
export const MAX_DISPATCH_ROWS = 65536;

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

/** The same with its rows packed for the wire. */
export type PackedDispatch = Omit<DispatchRows, "rows"> & { readonly rows: WireRows };

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

/** Makes the message of a dispatch. */
export function encodeDispatch(header: DispatchHeader, payload: PackedDispatch): Dispatch {
  const { rows } = payload;
  const message: Dispatch = {
    ...header,
    numRows: rows.numRows,
    dtype: rows.dtype,
    hiddenStates: rows.bytes,
    rowScales: bytesOf(rows.scales),
    expertIds: bytesOf(payload.expertIds),
    topkWeights: bytesOf(payload.topkWeights),
    crc32: 0,
  };
  message.crc32 = dispatchCrc(message);
  return message;
}

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
  if (!isRowDtype(dtype)) throw invalid(`dtype ${dtype}, expected F16, F32 or INT8`);
  const scaleBytes = dtype === WireDtype.WIRE_DTYPE_INT8 ? 4 * numRows : 0;
  const rowsBytes = numRows * bytesPerRow(dtype, hiddenSize);
  expectValue("bytes of hidden_states", message.hiddenStates.length, rowsBytes);
  expectValue("bytes of row_scales", message.rowScales.length, scaleBytes);
  expectValue("bytes of expert_ids", message.expertIds.length, numRows * topK * 2);
  expectValue("bytes of topk_weights", message.topkWeights.length, numRows * topK * 4);
  return {
    rows: unpackRows(
      { dtype, bytes: message.hiddenStates, scales: f32FromBytes(message.rowScales), numRows },
      hiddenSize,
    ),
    expertIds: u16FromBytes(message.expertIds),
    topkWeights: f32FromBytes(message.topkWeights),
  };
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

/** CRC-32 of what names a fetched expert as expert.proto defines it; that of its bytes goes on from it. */
export function fetchCrc(request: FetchExpertRequest): number {
  return crcOfU32s([request.layer, request.expertId, request.format], 0);
}

/** CRC-32 of a shard's status as expert.proto defines it, whatever its own says. */
export function statusCrc(status: ShardStatus): number {
  return crc32(ShardStatus.encode({ ...status, crc32: 0 }).finish());
}

/** CRC-32 of a placement as cluster.proto defines it. */
export function placementCrc(placement: ShardPlacement): number {
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
  return peersCrc(placement, crc);
}

function peersCrc({ peers }: ShardPlacement, before: number): number {
  let crc = crcOfU32s([peers.length], before);
  for (const { address, layers } of peers) {
    const name = Buffer.from(address, "utf8");
    crc = crc32(name, crcOfU32s([name.length], crc));
    crc = crcOfU32s([layers.length], crc);
    for (const { layer, expertIds } of layers) {
      crc = crcOfU32s([layer, expertIds.length, ...expertIds], crc);
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
