/** The giving side of FetchExpert: a resident expert for another shard, in chunks that give way to dispatches. */

import { crc32 } from "node:zlib";

import type { handleServerStreamingCall, ServerWritableStream } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";

import { errorMessage } from "../core/error-message.ts";
import type { ExpertFormat, PackedExpert } from "../core/expert-format.ts";
import { formatFromWire } from "../core/format-message.ts";
import { partsOf } from "../core/packed-bytes.ts";
import { bytesOf } from "../core/tensor.ts";
import { fetchCrc } from "../core/wire.ts";
import type { ExpertChunk, FetchExpertRequest } from "../proto/gen/switchyard/v1/expert.ts";

/** Bytes of a chunk at most, far below the limit of a message. */
const CHUNK_BYTES = 2 ** 20;

/** Experts that are given at a time. */
const MAX_FETCHES = 4;

/** Longest that an expert may be on its way: this, and its bytes at this rate. A slower peer is no help. */
const FETCH_BASE_MS = 2_000;
const FETCH_BYTES_PER_MS = 1_000;

/** Longest that a peer may take nothing before it loses its place; at the rate above a chunk takes about one second. */
const STALL_MS = 5_000;

/** Milliseconds within which an expert of so many bytes is given, or not at all. */
export function fetchTimeoutMs(bytes: number): number {
  return FETCH_BASE_MS + bytes / FETCH_BYTES_PER_MS;
}

/** What giving needs. */
export interface FetchExpertOptions {
  readonly modelHash: string;
  /** A resident expert; undefined where it is not resident in that format. */
  readonly read: (
    layer: number,
    expert: number,
    format: ExpertFormat,
  ) => Promise<PackedExpert> | undefined;
  /** Longest that a peer may take nothing, milliseconds; absent: STALL_MS. */
  readonly stallMs?: number;
}

type Call = ServerWritableStream<FetchExpertRequest, ExpertChunk>;

/** Makes the method's handler. */
export function createFetchExpert({
  modelHash,
  read,
  stallMs = STALL_MS,
}: FetchExpertOptions): handleServerStreamingCall<FetchExpertRequest, ExpertChunk> {
  let fetches = 0;
  const give = async (call: Call): Promise<void> => {
    const { request } = call;
    const { layer, expertId } = request;
    if (request.modelHash !== modelHash) {
      return fail(call, status.FAILED_PRECONDITION, `model_hash: the shard has ${modelHash}`);
    }
    if (fetches >= MAX_FETCHES) {
      const text = `${fetches} experts are fetched already, the limit is ${MAX_FETCHES}`;
      return fail(call, status.RESOURCE_EXHAUSTED, text);
    }
    const format = formatFromWire(request.format);
    const reading = format === undefined ? undefined : read(layer, expertId, format);
    if (reading === undefined) {
      const name = `layer ${layer} expert ${expertId} in ${format ?? request.format}`;
      return fail(call, status.NOT_FOUND, `${name} is not resident`);
    }
    fetches++;
    try {
      if (!(await send(call, await reading, stallMs))) {
        const text = `layer ${layer} expert ${expertId}: the peer took nothing for ${stallMs} ms`;
        fail(call, status.DEADLINE_EXCEEDED, text);
      }
    } catch (error) {
      fail(call, status.INTERNAL, errorMessage(error));
    } finally {
      fetches--;
    }
  };
  return (call) => {
    call.on("error", () => {});
    void give(call);
  };
}

function fail(call: Call, code: status, details: string): void {
  call.emit("error", { code, details });
}

/**
 * Writes the chunks one at a time, so that a call keeps no more than the one on its way, whatever becomes of it; false
 * where the peer did not take one within `stallMs`.
 */
async function send(call: Call, expert: PackedExpert, stallMs: number): Promise<boolean> {
  const parts = partsOf(expert)
    .map(bytesOf)
    .filter(({ length }) => length > 0);
  const totalBytes = parts.reduce((sum, { length }) => sum + length, 0);
  let crc = fetchCrc(call.request);
  let sent = 0;
  for (const part of parts) {
    for (let from = 0; from < part.length; from += CHUNK_BYTES) {
      if (call.cancelled) return true;
      const data = part.subarray(from, from + CHUNK_BYTES);
      crc = crc32(data, crc);
      sent += data.length;
      const isLast = sent === totalBytes;
      if (!(await taken(call, { data, totalBytes, crc32: isLast ? crc : 0 }, stallMs)))
        return false;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }
  call.end();
  return true;
}

/** Settles when the peer has taken a chunk, or the call is over; with false where neither is so within `stallMs`. */
function taken(call: Call, chunk: ExpertChunk, stallMs: number): Promise<boolean> {
  return new Promise((resolve) => {
    const events = ["cancelled", "close", "error"];
    const end = (goesOn: boolean) => {
      clearTimeout(timer);
      for (const event of events) call.off(event, done);
      resolve(goesOn);
    };
    const done = () => end(true);
    const timer = setTimeout(() => end(false), stallMs);
    for (const event of events) call.on(event, done);
    call.write(chunk, done);
  });
}
