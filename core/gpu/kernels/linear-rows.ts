/** What the fast kernels over plain matrices share: how rows lie in input and result, and what becomes of a result. */

import type { ExpertFormat } from "../../expert-format.ts";
import type { LinearEpilogue } from "./linear.ts";
import { LOOKUP, type Lookup } from "./tile.ts";

/** How a kernel over one matrix finds its rows. */
export type PlainLookup = Extract<Lookup, { kind: "tokens" | "samples" }>;

/** What a product does; strides are in columns. */
export interface PlainProduct {
  /** Columns of the input; a multiple of 8. */
  readonly k: number;
  /** Columns of the result. */
  readonly n: number;
  /** From one row of the result to the next, where it is part of wider rows. */
  readonly stride?: number;
  /** A matrix per head, for rows of the input and of the result that consist of heads. */
  readonly heads?: HeadStrides;
  readonly format: ExpertFormat;
  readonly epilogue: LinearEpilogue;
  /** What a result is multiplied by before it is added; 1 unless told otherwise. */
  readonly factor?: number;
}

/** Heads of a row, in columns. */
export interface HeadStrides {
  readonly numHeads: number;
  /** Of the input, from one row to the next and from one head to the next; multiples of 4. */
  readonly tokenStride: number;
  readonly headStride: number;
  /** Of the result, from one head to the next. */
  readonly outStride: number;
}

/** Matrices of a product: what the grid is deep. */
export function numMatrices({ heads }: PlainProduct): number {
  return heads?.numHeads ?? 1;
}

const BIAS = "@group(0) @binding(4) var<storage, read> bias: array<f32>; // [n]";

/** WGSL of the epilogues: a binding, and a statement over `value`, `row`, `col` and `to`, where the result goes. */
const EPILOGUE = {
  store: { binding: "", statement: "out[to] = value;" },
  storeBiased: { binding: BIAS, statement: "out[to] = value + bias[col];" },
  add: { binding: "", statement: "out[to] += FACTOR * value;" },
  addBiased: { binding: BIAS, statement: "out[to] += FACTOR * (value + bias[col]);" },
  addScaled: {
    binding: "@group(0) @binding(4) var<storage, read> scale: array<f32>; // [numTokens]",
    statement: "out[to] += FACTOR * scale[row] * value;",
  },
} as const;

/**
 * WGSL of bindings 1, 3 and 4 (and the weights' scales behind them, where `scaled`), of tile.ts's lookup, and of
 * - `input_row(row, head)`: where a row's head begins in the input, in vec4;
 * - `put(row, head, col, value)`: what becomes of a result.
 */
export function plainBindings(
  product: PlainProduct,
  kind: PlainLookup["kind"],
  scaled: boolean,
): string {
  const { k, n, stride = n, heads, epilogue, factor = 1 } = product;
  const { binding, statement } = EPILOGUE[epilogue];
  const scales = binding === "" ? 4 : 5;
  return /* wgsl */ `
const N = ${n}u;
const FACTOR = f32(${factor});
const ROW4 = ${(heads?.tokenStride ?? k) / 4}u;
const HEAD4 = ${(heads?.headStride ?? 0) / 4}u;
const OUT_ROW = ${heads === undefined ? stride : heads.numHeads * heads.outStride}u;
const OUT_HEAD = ${heads?.outStride ?? 0}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${binding}
${scaled ? `@group(0) @binding(${scales}) var<storage, read> scales: array<u32>;` : ""}
${LOOKUP[kind]}
fn input_row(row: u32, head: u32) -> u32 { return row * ROW4 + head * HEAD4; }
fn put(row: u32, head: u32, col: u32, value: f32) {
  let to = row * OUT_ROW + head * OUT_HEAD + col;
  ${statement}
}`;
}
