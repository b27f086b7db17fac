/** Safetensors files for tests, well-formed or not. */

import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A tensor to write. */
export interface TestTensor {
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

/** A safetensors file of a header, given as JSON text, and data. */
export function safetensorsFile(header: string | Uint8Array, data: Uint8Array): Buffer {
  const headerBytes = typeof header === "string" ? Buffer.from(header) : header;
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(headerBytes.length));
  return Buffer.concat([length, headerBytes, data]);
}

/** A well-formed safetensors file of these tensors. */
export function encodeSafetensors(tensors: ReadonlyMap<string, TestTensor>): Buffer {
  const header: Record<string, unknown> = { __metadata__: { format: "pt" } };
  let end = 0;
  for (const [name, { dtype, shape, data }] of tensors) {
    header[name] = { dtype, shape, data_offsets: [end, (end += data.length)] };
  }
  const data = Buffer.concat(Array.from(tensors.values(), (tensor) => tensor.data));
  return safetensorsFile(JSON.stringify(header), data);
}

/** The tensors of a well-formed safetensors file. */
export async function decodeSafetensors(file: string): Promise<Map<string, TestTensor>> {
  const bytes = await readFile(file);
  const dataBegin = 8 + Number(bytes.readBigUInt64LE());
  const header = JSON.parse(bytes.toString("utf8", 8, dataBegin)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, TestTensor>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const data = bytes.subarray(dataBegin + data_offsets[0], dataBegin + data_offsets[1]);
    tensors.set(name, { dtype, shape, data });
  }
  return tensors;
}

/** A directory that is deleted when the test is over. */
export async function temporaryDir(t: { after(fn: () => Promise<void>): void }): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), "switchyard-model-"));
  t.after(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** A copy of a model directory with parts of its config.json replaced; undefined deletes a key. */
export async function copyModel(
  t: { after(fn: () => Promise<void>): void },
  from: string,
  config: Record<string, unknown> = {},
): Promise<string> {
  const dir = await temporaryDir(t);
  for (const name of ["config.json", "model.safetensors"])
    await cp(join(from, name), join(dir, name));
  const file = join(dir, "config.json");
  const old = JSON.parse(await readFile(file, "utf8")) as Record<string, unknown>;
  await writeFile(file, JSON.stringify({ ...old, ...config }));
  return dir;
}
