/** A GGUF file parsed back: a reader of its own, written from the format's description. */

import { readFile } from "node:fs/promises";

/** A parsed file. */
export interface ParsedGguf {
  readonly version: number;
  readonly metadata: ReadonlyMap<string, unknown>;
  /** Dimensions innermost first; `type` as ggml.h numbers it; `data` from the tensor's begin to the end of the file. */
  readonly tensors: ReadonlyMap<
    string,
    { readonly dims: readonly number[]; readonly type: number; readonly data: Buffer }
  >;
}

/** Reads a whole file. Throws where it is not GGUF or has a value type that is not read here. */
export async function readGguf(file: string): Promise<ParsedGguf> {
  const bytes = await readFile(file);
  let at = 4;
  const u32 = () => bytes.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(bytes.readBigUInt64LE((at += 8) - 8));
  const text = () => {
    const length = u64();
    return bytes.toString("utf8", at, (at += length));
  };
  const value = (type: number): unknown => {
    switch (type) {
      case 4:
        return u32();
      case 5:
        return bytes.readInt32LE((at += 4) - 4);
      case 6:
        return bytes.readFloatLE((at += 4) - 4);
      case 8:
        return text();
      case 9: {
        const elementType = u32();
        return Array.from({ length: u64() }, () => value(elementType));
      }
      default:
        throw new Error(`value type ${type} at byte ${at}`);
    }
  };
  if (bytes.toString("latin1", 0, 4) !== "GGUF") throw new Error(`${file} is not GGUF`);
  const version = u32();
  const numTensors = u64();
  const numValues = u64();
  const metadata = new Map(
    Array.from({ length: numValues }, () => {
      const key = text();
      return [key, value(u32())] as const;
    }),
  );
  const table = Array.from({ length: numTensors }, () => {
    const name = text();
    const dims = Array.from({ length: u32() }, u64);
    return { name, dims, type: u32(), offset: u64() };
  });
  const dataBegin = Math.ceil(at / 32) * 32;
  const tensors = new Map(
    table.map(({ name, dims, type, offset }) => {
      if (offset % 32 !== 0) throw new Error(`${name} begins at ${offset}, not aligned`);
      return [name, { dims, type, data: bytes.subarray(dataBegin + offset) }] as const;
    }),
  );
  return { version, metadata, tensors };
}
