/** The GGUF container, version 3: metadata, tensor table and aligned data, written in one pass. */

import { open, rename, rm } from "node:fs/promises";

import { numElements } from "../../core/tensor.ts";

/** Data of every tensor begins at a multiple of this, as the format has it where `general.alignment` is absent. */
const ALIGNMENT = 32;
const VERSION = 3;

/** A metadata value; numbers and lists carry the type that the reader asks for. */
export type GgufValue =
  | { readonly type: "u32"; readonly value: number }
  | { readonly type: "f32"; readonly value: number }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "strings"; readonly value: readonly string[] }
  | { readonly type: "i32s"; readonly value: readonly number[] };

/** Tensor types by their number in ggml.h. */
const GGML_TYPES = { F32: 0, F16: 1 } as const;

/** A tensor to write. */
export interface GgufTensor {
  readonly name: string;
  readonly type: keyof typeof GGML_TYPES;
  /** Row-major, outermost first; the file holds it the other way round. */
  readonly shape: readonly number[];
  /** Its bytes in pieces of any size. */
  chunks(): AsyncIterable<Uint8Array>;
}

/** Value types by their number in the format. */
const VALUE_TYPES = { u32: 4, i32: 5, f32: 6, string: 8, array: 9 } as const;

/** Bytes of a tensor's data. */
export function ggufBytes({ type, shape }: Pick<GgufTensor, "type" | "shape">): number {
  return numElements(shape) * (type === "F32" ? 4 : 2);
}

/**
 * Writes a GGUF file tensor by tensor; it has its name only when it is complete. `onBytes` is told of data written.
 * Throws TypeError where a tensor's pieces are not the bytes of its shape.
 */
export async function writeGguf(
  file: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
  onBytes: (numBytes: number) => void = () => {},
): Promise<void> {
  const partial = `${file}.partial`;
  const handle = await open(partial, "w");
  try {
    await handle.writeFile(ggufHeader(metadata, tensors));
    for (const tensor of tensors) {
      const expected = ggufBytes(tensor);
      let numBytes = 0;
      for await (const chunk of tensor.chunks()) {
        await handle.writeFile(chunk);
        numBytes += chunk.byteLength;
        onBytes(chunk.byteLength);
      }
      if (numBytes !== expected) {
        const shape = `${tensor.type} [${tensor.shape.join(", ")}]`;
        throw new TypeError(`${tensor.name}: ${numBytes} bytes, expected ${expected} of ${shape}`);
      }
      await handle.writeFile(new Uint8Array(padding(numBytes)));
    }
    await handle.close();
    await rename(partial, file);
  } catch (error) {
    await handle.close();
    await rm(partial, { force: true });
    throw error;
  }
}

/** Everything before the data, padded. */
function ggufHeader(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): Uint8Array {
  const parts = [
    Buffer.from("GGUF"),
    u32(VERSION),
    u64(tensors.length),
    u64(metadata.size),
    ...[...metadata].flatMap(([key, value]) => [text(key), encodeValue(value)]),
  ];
  let offset = 0;
  for (const tensor of tensors) {
    const { name, type, shape } = tensor;
    parts.push(text(name), u32(shape.length), ...shape.toReversed().map(u64));
    parts.push(u32(GGML_TYPES[type]), u64(offset));
    const numBytes = ggufBytes(tensor);
    offset += numBytes + padding(numBytes);
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc(padding(header.length))]);
}

function padding(numBytes: number): number {
  return (ALIGNMENT - (numBytes % ALIGNMENT)) % ALIGNMENT;
}

function encodeValue(value: GgufValue): Buffer {
  switch (value.type) {
    case "u32":
      return Buffer.concat([u32(VALUE_TYPES.u32), u32(value.value)]);
    case "f32": {
      const bytes = Buffer.alloc(4);
      bytes.writeFloatLE(value.value);
      return Buffer.concat([u32(VALUE_TYPES.f32), bytes]);
    }
    case "string":
      return Buffer.concat([u32(VALUE_TYPES.string), text(value.value)]);
    case "strings":
      return Buffer.concat([
        ...arrayHead(VALUE_TYPES.string, value.value),
        ...value.value.map(text),
      ]);
    case "i32s":
      return Buffer.concat([
        ...arrayHead(VALUE_TYPES.i32, value.value),
        new Uint8Array(Int32Array.from(value.value).buffer),
      ]);
  }
}

function arrayHead(elementType: number, values: readonly unknown[]): Buffer[] {
  return [u32(VALUE_TYPES.array), u32(elementType), u64(values.length)];
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}
