import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import type { RowSlice } from "../matrix.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface EmbedOptions {
  readonly hiddenSize: number;
  readonly weights: WeightsDtype;
  /** Rows of the table that the weights hold, where they are part of it; tokens of other rows are left alone. */
  readonly slice: RowSlice;
  /** What the rows are multiplied by. */
  readonly factor: number;
}

const WORKGROUP = 32;

/**
 * hidden[t, :] = factor · weights[tokenIds[t], :].
 *
 * 0 counts; 1 tokenIds u32 [numTokens]; 2 weights f16|f32 [slice.rows, hiddenSize]; 3 hidden f32 [numTokens, hiddenSize]
 */
export function embed(options: EmbedOptions): Kernel<StepSizes> {
  const { hiddenSize, weights, slice, factor } = options;
  return {
    label: `embed ${weights}`,
    grid: (sizes) => [ceilDiv(hiddenSize / 8, WORKGROUP), sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const H8 = ${hiddenSize / 8}u;
const FIRST_ROW = ${slice.firstRow}u;
const ROWS = ${slice.rows}u;
const FACTOR = f32(${factor});
@group(0) @binding(1) var<storage, read> token_ids: array<u32>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read_write> hidden: array<vec4<f32>>;
${WEIGHTS_8[weights]}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= H8 || id.y >= counts.tokens) { return; }
  let row = token_ids[id.y] - FIRST_ROW; // beyond ROWS as well for the rows before
  if (row >= ROWS) { return; }
  let eight = weights8(row * H8 + id.x);
  let at = (id.y * H8 + id.x) * 2u;
  hidden[at] = FACTOR * eight.a;
  hidden[at + 1u] = FACTOR * eight.b;
}`,
  };
}
