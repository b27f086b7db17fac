/** Where a tensor source stands in the files of a checkpoint, and how it is read from there. */

import {
  bytesOf,
  bytesPerElement,
  type DType,
  numElements,
  type StoredMatrix,
  toF32,
} from "../../tensor.ts";
import { decodeFp8, FP8_BLOCK, MXFP4_GROUP, MXFP4_GROUP_BYTES } from "./block-scales.ts";
import { CheckpointError } from "./checkpoint-error.ts";
import type { TensorSource } from "../families/model-family.ts";
import type { SafetensorsFile, TensorEntry } from "./safetensors.ts";
import { pickColumns, pickRows } from "./strided-bytes.ts";

/** A tensor of a file. */
export interface StoredTensor {
  readonly name: string;
  readonly file: SafetensorsFile;
  readonly entry: TensorEntry;
}

/** What is read for a source: its values, and the scales of their blocks where they have such. */
export type StoredSource = { readonly source: TensorSource; readonly values: StoredTensor } & (
  | { readonly encoding: "plain"; readonly dtype: DType }
  | { readonly encoding: "FP8"; readonly dtype: DType; readonly scales: StoredTensor }
  | { readonly encoding: "MXFP4"; readonly scales: StoredTensor }
);

/** A checkpoint's tensor of a name. */
export type FindTensor = (name: string) => StoredTensor | undefined;

/**
 * Finds a source in a checkpoint's files: under its own name, or where re-saved checkpoints have it.
 * Throws CheckpointError where there is none, or where its shape or dtype is not what the model needs; `dir` is named.
 */
export function findSource(source: TensorSource, find: FindTensor, dir: string): StoredSource {
  for (let place: TensorSource | undefined = source; place; place = place.resaved) {
    const found =
      place.encoding === "MXFP4" ? findMxfp4(place, find, dir) : findFloats(place, find, dir);
    if (found) return found;
  }
  const name = source.encoding === "MXFP4" ? `${source.name}_blocks` : source.name;
  throw missing(dir, name, storedShape(source));
}

/** Shape of the tensor that a source is, or is part of, in elements. */
function storedShape(source: TensorSource): readonly number[] {
  return source.part?.shape ?? source.shape;
}

/** Names and shapes of the two tensors of MXFP4 weights of a shape. */
export function mxfp4Tensors(name: string, shape: readonly number[]) {
  const groups = [...shape.slice(0, -1), shape[shape.length - 1] / MXFP4_GROUP];
  return {
    blocks: { name: `${name}_blocks`, shape: [...groups, MXFP4_GROUP_BYTES] },
    scales: { name: `${name}_scales`, shape: groups },
  };
}

/** Name and shape of the scales of FP8 weights of a shape. */
export function fp8Scales(name: string, shape: readonly number[]) {
  const matrix = shape.slice(-2).map((size) => Math.ceil(size / FP8_BLOCK));
  return { name: `${name}_scale_inv`, shape: [...shape.slice(0, -2), ...matrix] };
}

function findMxfp4(source: TensorSource, find: FindTensor, dir: string): StoredSource | undefined {
  const { blocks, scales } = mxfp4Tensors(source.name, storedShape(source));
  const values = find(blocks.name);
  if (!values) return undefined;
  checkShape(values, blocks.shape);
  const found = { source, encoding: "MXFP4" as const, values, scales: required(scales, find, dir) };
  for (const tensor of [values, found.scales]) {
    if (tensor.entry.dtype !== "U8") throw wrongDtype(tensor, "U8");
  }
  return found;
}

function findFloats(source: TensorSource, find: FindTensor, dir: string): StoredSource | undefined {
  const values = find(source.name);
  if (!values) return undefined;
  const shape = storedShape(source);
  const { dtype } = values.entry;
  if (isDType(dtype)) {
    checkShape(values, shape);
    return { source, encoding: "plain", values, dtype };
  }
  if (dtype !== "F8_E4M3" || source.shape.length !== 2) throw wrongDtype(values, FLOATS);
  checkShape(values, shape);
  const scales = required(fp8Scales(source.name, shape), find, dir);
  if (!isDType(scales.entry.dtype)) throw wrongDtype(scales, FLOATS);
  const { firstRow = 0, rowStep = 1, transposed = false } = source.part ?? {};
  if (firstRow % FP8_BLOCK !== 0 || rowStep !== 1 || transposed) {
    const rows = `rows from ${firstRow} in steps of ${rowStep}`;
    throw problemOf(
      values,
      `${rows} of F8_E4M3, expected rows that begin with a block of ${FP8_BLOCK}`,
    );
  }
  return { source, encoding: "FP8", values, scales, dtype: scales.entry.dtype };
}

const FLOATS = "F32, F16, BF16 or, with block scales, F8_E4M3";

function isDType(dtype: string): dtype is DType {
  return dtype === "F32" || dtype === "F16" || dtype === "BF16";
}

function required(
  { name, shape }: { readonly name: string; readonly shape: readonly number[] },
  find: FindTensor,
  dir: string,
): StoredTensor {
  const stored = find(name);
  if (!stored) throw missing(dir, name, shape);
  checkShape(stored, shape);
  return stored;
}

function checkShape(stored: StoredTensor, shape: readonly number[]): void {
  const got = stored.entry.shape;
  if (shape.length === got.length && shape.every((size, i) => size === got[i])) return;
  throw problemOf(
    stored,
    `shape is [${got.join(", ")}], expected [${shape.join(", ")}] by config.json`,
  );
}

function missing(dir: string, name: string, shape: readonly number[]): CheckpointError {
  return new CheckpointError(`${dir}: tensor ${name} is missing, expected [${shape.join(", ")}]`);
}

function wrongDtype(stored: StoredTensor, expectation: string): CheckpointError {
  return problemOf(stored, `dtype is ${stored.entry.dtype}, expected ${expectation}`);
}

function problemOf({ file, name }: StoredTensor, problem: string): CheckpointError {
  return new CheckpointError(`${file.file}: tensor ${name}: ${problem}`);
}

/** Bytes of tensors that were read, by tensor and range, so that sources within the same bytes read them once. */
export type ReadBytes = Map<string, Promise<Uint8Array<ArrayBuffer>>>;

/** Reads a source; FP8 becomes F32, MXFP4 stays as it is. Throws SafetensorsError where a file has shrunk. */
export async function readStored(
  stored: StoredSource,
  bytesRead: ReadBytes,
): Promise<StoredMatrix> {
  const { source, values } = stored;
  const { shape } = source;
  switch (stored.encoding) {
    case "plain": {
      const { dtype } = stored;
      const bytes = await readRows(source, values, bytesPerElement(dtype), bytesRead);
      return { dtype, shape, bytes };
    }
    case "FP8": {
      const [rows, columns] = shape;
      const bytes = await readRows(source, values, 1, bytesRead);
      const scales = await readScales(source, stored.scales, stored.dtype, bytesRead);
      const decoded = decodeFp8(bytes, scales, rows, columns);
      return { dtype: "F32", shape, bytes: bytesOf(decoded) };
    }
    case "MXFP4": {
      const bytes = await readRows(source, values, 1 / 2, bytesRead);
      const scales = await readRows(source, stored.scales, 1 / MXFP4_GROUP, bytesRead);
      return { dtype: "MXFP4", shape, bytes, scales };
    }
  }
}

/** Scales of the blocks of an FP8 source, which begins with a block. */
async function readScales(
  source: TensorSource,
  { name, file, entry }: StoredTensor,
  dtype: DType,
  bytesRead: ReadBytes,
): Promise<Float32Array> {
  const [blockRows, blockColumns] = entry.shape.slice(-2);
  const { index = 0, firstRow = 0 } = source.part ?? {};
  const rows = Math.ceil(source.shape[0] / FP8_BLOCK);
  const rowBytes = blockColumns * bytesPerElement(dtype);
  const offset = (index * blockRows + firstRow / FP8_BLOCK) * rowBytes;
  const bytes = await readOnce(file, name, offset, rows * rowBytes, bytesRead);
  return toF32({ dtype, shape: [rows, blockColumns], bytes });
}

/** The rows of a source, one after the other, from a tensor with so many bytes per element. */
async function readRows(
  { shape, part }: TensorSource,
  { name, file }: StoredTensor,
  elementBytes: number,
  bytesRead: ReadBytes,
): Promise<Uint8Array<ArrayBuffer>> {
  if (!part) return readOnce(file, name, 0, numElements(shape) * elementBytes, bytesRead);
  const [count, columns = 1] = shape;
  const { index, firstRow, rowStep, transposed } = part;
  const expertBytes = numElements(part.shape.slice(1)) * elementBytes;
  const expertBegin = index * expertBytes;
  const rowBytes = columns * elementBytes;
  if (rowStep === 1 && !transposed) {
    return readOnce(file, name, expertBegin + firstRow * rowBytes, count * rowBytes, bytesRead);
  }
  const all = await readOnce(file, name, expertBegin, expertBytes, bytesRead);
  return transposed
    ? pickColumns(all, elementBytes as 2 | 4, columns, firstRow, rowStep, count)
    : pickRows(all, rowBytes, firstRow, rowStep, count);
}

function readOnce(
  file: SafetensorsFile,
  name: string,
  offset: number,
  length: number,
  bytesRead: ReadBytes,
): Promise<Uint8Array<ArrayBuffer>> {
  const key = `${offset}+${length} ${name}`;
  const known = bytesRead.get(key);
  if (known) return known;
  const reading = file.readBytes(name, offset, length);
  bytesRead.set(key, reading);
  return reading;
}
