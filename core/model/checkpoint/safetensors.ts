/** The safetensors format: a strict reading of its header, and a file that is read by offset. */

import { type FileHandle, open, stat } from "node:fs/promises";

import { errorMessage } from "../../error-message.ts";
import { isJsonObject, shownJson } from "./json-file.ts";
import { repeatedKey } from "./json-keys.ts";

/** Header bytes at most, as in the format's reference implementation. */
export const MAX_HEADER_BYTES = 100_000_000;

/** Bits per element of the format's dtypes. */
const DTYPE_BITS: ReadonlyMap<string, number> = new Map([
  ...["F4"].map((dtype) => [dtype, 4] as const),
  ...["F6_E2M3", "F6_E3M2"].map((dtype) => [dtype, 6] as const),
  ...["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"].map((dtype) => [dtype, 8] as const),
  ...["I16", "U16", "F16", "BF16"].map((dtype) => [dtype, 16] as const),
  ...["I32", "U32", "F32"].map((dtype) => [dtype, 32] as const),
  ...["I64", "U64", "F64", "C64"].map((dtype) => [dtype, 64] as const),
]);

/** A file is not what the safetensors format asks for; the message names file, tensor, value and expectation. */
export class SafetensorsError extends Error {
  override readonly name = "SafetensorsError";
  readonly file: string;
  readonly tensor: string | undefined;
  constructor(file: string, tensor: string | undefined, problem: string) {
    super(`${file}: ${tensor === undefined ? "" : `tensor ${shownJson(tensor)}: `}${problem}`);
    this.file = file;
    this.tensor = tensor;
  }
}

/** Where a tensor lies in its file. */
export interface TensorEntry {
  readonly dtype: string;
  readonly shape: readonly number[];
  /** First byte, from the start of the file. */
  readonly begin: number;
  /** Byte after the last, from the start of the file. */
  readonly end: number;
}

/**
 * Parses the JSON header of a file of `fileBytes` bytes.
 * The tensors must fill the data section without overlap or hole, and have the bytes of their dtype and shape.
 * @param headerBytes the header without its 8 bytes of length
 * @throws SafetensorsError naming `file`
 */
export function parseSafetensorsHeader(
  headerBytes: Uint8Array,
  fileBytes: number,
  file: string,
): Map<string, TensorEntry> {
  const header = parseHeaderJson(headerBytes, file);
  const dataBegin = 8 + headerBytes.length;
  const tensors = new Map<string, TensorEntry>();
  for (const [name, value] of Object.entries(header)) {
    if (name === "__metadata__") checkMetadata(value, file);
    else tensors.set(name, parseEntry(name, value, dataBegin, fileBytes, file));
  }
  checkCoverage(tensors, dataBegin, fileBytes, file);
  return tensors;
}

function parseHeaderJson(headerBytes: Uint8Array, file: string) {
  let text: string;
  let header: unknown;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(headerBytes);
    header = JSON.parse(text);
  } catch (error) {
    const reason = errorMessage(error);
    throw new SafetensorsError(file, undefined, `header is not JSON: ${reason}`);
  }
  if (!text.startsWith("{") || !isJsonObject(header)) {
    throw new SafetensorsError(file, undefined, "header is not a JSON object that starts with {");
  }
  const repeated = repeatedKey(text);
  if (repeated !== undefined) {
    throw new SafetensorsError(file, undefined, `header has the key ${shownJson(repeated)} twice`);
  }
  return header;
}

function checkMetadata(value: unknown, file: string): void {
  if (isJsonObject(value) && Object.values(value).every((entry) => typeof entry === "string")) {
    return;
  }
  throw new SafetensorsError(file, undefined, "__metadata__ is not an object of strings");
}

function parseEntry(
  name: string,
  value: unknown,
  dataBegin: number,
  fileBytes: number,
  file: string,
): TensorEntry {
  const fail = (field: string, got: unknown, expectation: string) =>
    new SafetensorsError(file, name, `${field} is ${shownJson(got)}, expected ${expectation}`);
  if (!isJsonObject(value)) throw fail("entry", value, "an object");
  const { dtype, shape, data_offsets: offsets } = value;
  if (typeof dtype !== "string") throw fail("dtype", dtype, "a string");
  if (!isSizeList(shape)) throw fail("shape", shape, "a list of integers of at least 0");
  const dataBytes = fileBytes - dataBegin;
  if (!isSizeList(offsets) || offsets.length !== 2 || offsets[0] > offsets[1]) {
    throw fail("data_offsets", offsets, "[begin, end] with 0 ≤ begin ≤ end");
  }
  if (offsets[1] > dataBytes) {
    throw fail("data_offsets", offsets, `an end within the ${dataBytes} bytes of data`);
  }
  const length = offsets[1] - offsets[0];
  const bits = DTYPE_BITS.get(dtype);
  if (bits !== undefined) {
    // A product that is no safe integer is inexact, but far above any length; unless a zero follows.
    const elements = shape.includes(0) ? 0 : shape.reduce((product, size) => product * size, 1);
    if (elements * bits !== length * 8) {
      const size = `${(elements * bits) / 8} bytes of ${dtype} ${shownJson(shape)}`;
      throw fail("data_offsets", offsets, `the ${size}, not ${length}`);
    }
  }
  return { dtype, shape, begin: dataBegin + offsets[0], end: dataBegin + offsets[1] };
}

function isSizeList(value: unknown): value is number[] {
  return (
    Array.isArray(value) &&
    value.every((size) => Number.isSafeInteger(size) && (size as number) >= 0)
  );
}

/** Throws unless the tensors follow each other from the first byte of data to the last. */
function checkCoverage(
  tensors: ReadonlyMap<string, TensorEntry>,
  dataBegin: number,
  fileBytes: number,
  file: string,
): void {
  const sorted = [...tensors].toSorted(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let next = dataBegin;
  for (const [name, { begin, end }] of sorted) {
    if (begin !== next) {
      const kind = begin < next ? "overlaps the tensor before it" : "leaves a hole before it";
      const got = `data begins at ${begin - dataBegin}, expected ${next - dataBegin}`;
      throw new SafetensorsError(file, name, `${kind}: ${got}`);
    }
    next = end;
  }
  if (next !== fileBytes) {
    const problem = `tensors end at byte ${next}, expected the end of the file, ${fileBytes}`;
    throw new SafetensorsError(file, undefined, problem);
  }
}

/** An open safetensors file; reads are positional and may run at the same time. */
export class SafetensorsFile {
  readonly file: string;
  readonly tensors: ReadonlyMap<string, TensorEntry>;
  readonly fileBytes: number;
  readonly #handle: FileHandle;
  #bytesRead: number;

  private constructor(
    file: string,
    handle: FileHandle,
    tensors: ReadonlyMap<string, TensorEntry>,
    fileBytes: number,
    headerBytes: number,
  ) {
    this.file = file;
    this.#handle = handle;
    this.tensors = tensors;
    this.fileBytes = fileBytes;
    this.#bytesRead = headerBytes;
  }

  /** Opens a file and reads its header. Throws SafetensorsError, or the file system's error. */
  static async open(file: string): Promise<SafetensorsFile> {
    // Before open: opening a pipe would wait for a writer.
    const found = await stat(file).catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") throw new SafetensorsError(file, undefined, "no such file");
      throw error;
    });
    if (!found.isFile()) throw new SafetensorsError(file, undefined, "is not a regular file");
    const handle = await open(file, "r");
    try {
      const fileBytes = (await handle.stat()).size;
      if (fileBytes < 8) {
        throw new SafetensorsError(file, undefined, `${fileBytes} bytes, expected at least 8`);
      }
      const length = await readAt(handle, file, 0, 8);
      const headerBytes = new DataView(length.buffer).getBigUint64(0, true);
      const limit = Math.min(fileBytes - 8, MAX_HEADER_BYTES);
      if (headerBytes > BigInt(limit)) {
        const problem = `header length is ${headerBytes}, expected at most ${limit} in a file of ${fileBytes} bytes`;
        throw new SafetensorsError(file, undefined, problem);
      }
      const header = await readAt(handle, file, 8, Number(headerBytes));
      const tensors = parseSafetensorsHeader(header, fileBytes, file);
      return new SafetensorsFile(file, handle, tensors, fileBytes, 8 + header.length);
    } catch (error) {
      await handle.close();
      throw error;
    }
  }

  /** Reads `length` bytes of a tensor, from its byte `offset` on. Throws RangeError outside of the tensor. */
  async readBytes(name: string, offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    const entry = this.tensors.get(name);
    if (!entry) throw new SafetensorsError(this.file, name, "no such tensor");
    if (!(offset >= 0 && length >= 0 && entry.begin + offset + length <= entry.end)) {
      const size = entry.end - entry.begin;
      throw new RangeError(`${name}: bytes ${offset}+${length} are not within its ${size} bytes`);
    }
    const bytes = await readAt(this.#handle, this.file, entry.begin + offset, length);
    this.#bytesRead += length;
    return bytes;
  }

  /** Bytes read so far, the header's included. */
  bytesRead(): number {
    return this.#bytesRead;
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

/** One read call at most; the system's own limit is 2 GiB. */
const MAX_READ_BYTES = 256 * 1024 * 1024;

async function readAt(
  handle: FileHandle,
  file: string,
  position: number,
  length: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  let done = 0;
  while (done < length) {
    const wanted = Math.min(length - done, MAX_READ_BYTES);
    const { bytesRead } = await handle.read(bytes, done, wanted, position + done);
    if (bytesRead === 0) {
      const problem = `truncated: byte ${position + done} is missing, expected ${length} bytes at ${position}`;
      throw new SafetensorsError(file, undefined, problem);
    }
    done += bytesRead;
  }
  return bytes;
}
