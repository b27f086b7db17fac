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
}

type Call = ServerWritableStream<FetchExpertRequest, ExpertChunk>;

/** Makes the method's handler. */
export function createFetchExpert({
  modelHash,
  read,
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
      await send(call, await reading);
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

async function send(call: Call, expert: PackedExpert): Promise<void> {
  const parts = partsOf(expert)
    .map(bytesOf)
    .filter(({ length }) => length > 0);
  const totalBytes = parts.reduce((sum, { length }) => sum + length, 0);
  let crc = fetchCrc(call.request);
  let sent = 0;
  for (const part of parts) {
    for (let from = 0; from < part.length; from += CHUNK_BYTES) {
      if (call.cancelled) return;
      const data = part.subarray(from, from + CHUNK_BYTES);
      crc = crc32(data, crc);
      sent += data.length;
      const isLast = sent === totalBytes;
      const goesOn = call.write({ data, totalBytes, crc32: isLast ? crc : 0 });
      await (goesOn ? new Promise((resolve) => setImmediate(resolve)) : drained(call));
    }
  }
  call.end();
}

/** Settles when more can be written, or the call is over. */
function drained(call: Call): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      for (const event of ["drain", "cancelled", "close", "error"]) call.off(event, done);
      resolve();
    };
    for (const event of ["drain", "cancelled", "close", "error"]) call.on(event, done);
  });
}
