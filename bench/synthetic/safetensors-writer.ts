/** Sharded safetensors files written tensor by tensor: nothing but a piece of one tensor is ever in memory. */

import { open, writeFile } from "node:fs/promises";
import { join } from "node:path";

/** A tensor to write. */
export interface WrittenTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly numBytes: number;
  /** Its bytes in pieces of any size; a piece is used up before the next one is asked for. */
  chunks(): Iterable<Uint8Array>;
}

/** Tensors in files of at most `maxBytes` of data each; a larger tensor has a file of its own. */
export function shardTensors(
  tensors: readonly WrittenTensor[],
  maxBytes: number,
): (readonly WrittenTensor[])[] {
  const shards: WrittenTensor[][] = [];
  let room = 0;
  for (const tensor of tensors) {
    if (shards.length === 0 || tensor.numBytes > room) {
      shards.push([]);
      room = maxBytes;
    }
    shards[shards.length - 1].push(tensor);
    room -= tensor.numBytes;
  }
  return shards;
}

/**
 * Writes `model.safetensors`, or where there are several shards `model-00001-of-0000N.safetensors` and their index, as
 * Hugging Face publishes them. `onBytes` is told of data written.
 */
export async function writeSafetensors(
  dir: string,
  shards: readonly (readonly WrittenTensor[])[],
  onBytes: (numBytes: number) => void,
): Promise<void> {
  const weightMap: Record<string, string> = {};
  let totalBytes = 0;
  for (const [i, tensors] of shards.entries()) {
    const name = shardName(i, shards.length);
    await writeShard(join(dir, name), tensors, onBytes);
    for (const tensor of tensors) {
      weightMap[tensor.name] = name;
      totalBytes += tensor.numBytes;
    }
  }
  if (shards.length === 1) return;
  const index = { metadata: { total_size: totalBytes }, weight_map: weightMap };
  await writeFile(join(dir, "model.safetensors.index.json"), `${JSON.stringify(index, null, 1)}\n`);
}

function shardName(index: number, count: number): string {
  const digits = (value: number) => String(value).padStart(5, "0");
  return count === 1
    ? "model.safetensors"
    : `model-${digits(index + 1)}-of-${digits(count)}.safetensors`;
}

async function writeShard(
  file: string,
  tensors: readonly WrittenTensor[],
  onBytes: (numBytes: number) => void,
): Promise<void> {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const { name, dtype, shape, numBytes } of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, (end += numBytes)] };
  }
  // Data begins at a multiple of 8, as the format's own writer has it.
  const text = JSON.stringify(header);
  const json = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const handle = await open(file, "w");
  try {
    await handle.writeFile(Buffer.concat([length, json]));
    for (const tensor of tensors) {
      const { name, numBytes } = tensor;
      let written = 0;
      for (const chunk of tensor.chunks()) {
        await handle.writeFile(chunk);
        written += chunk.byteLength;
        onBytes(chunk.byteLength);
      }
      if (written !== numBytes) throw new TypeError(`${name}: ${written} bytes of ${numBytes}`);
    }
  } finally {
    await handle.close();
  }
}
