import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { activationWgsl } from "./activation.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings, type FfnLookup } from "./expert-bindings.ts";
import {
  GEMM_ENABLE,
  GEMM_PARAMETERS,
  gemmBody,
  gemmBytes,
  gemmColumns,
  gemmDeclarations,
  gemmGrid,
  gemmName,
  gemmRows,
  type GemmShape,
} from "./gemm.ts";
import { lines } from "./matvec.ts";
import { packedWeights } from "./packed-weights.ts";
import { numTiles } from "./tile.ts";

/**
 * The first half of the experts of a bank, or of one FFN that all rows take (`tokens`), for many rows:
 * out[pair, i] = activation(x[row]·gate[slot, i] + gateBias[slot, i], x[row]·up[slot, i] + upBias[slot, i]).
 *
 * 1 x f32 [numRows, hiddenSize]; 2 weights [slots of the bank, 2·intermediateSize, hiddenSize], gate above up;
 * 3 out f32 [numPairs, intermediateSize]; 4 tiles of `gemmRows(shape)` pairs; 5 scales likewise;
 * 7 biases f32 [slots of the bank, 2·intermediateSize]; else as expert-bindings.ts
 * Half of a workgroup's matrix rows are of gate, half the same of up.
 */
export function gemmGateUp(
  sizes: ExpertSizes,
  format: ExpertFormat,
  shape: GemmShape,
  kind: Exclude<FfnLookup["kind"], "direct"> = "grouped",
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, activation, expertBias } = sizes;
  const packed = packedWeights(format, hiddenSize);
  const lookup = { kind, rows: gemmRows(shape) };
  const [columns, rows] = shape.block;
  const half = gemmColumns(shape) / 2;
  const outputs = columns / 2;
  return {
    label: `${gemmName(shape)} gate-up ${hiddenSize}→${width} ${format} ${kind}`,
    grid: gemmGrid(shape, 2 * width, (step) => numTiles(lookup, step)),
    workgroupBytes: gemmBytes(shape),
    wgsl: /* wgsl */ `${GEMM_ENABLE[shape.tile]}
${COUNTS}
const I = ${width}u;
const HALF = ${half}u;
const ROWS = TILE_ROWS;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${activationWgsl(activation, "f32")}
${gemmDeclarations(shape, packed, hiddenSize)}

@compute @workgroup_size(THREADS_X, THREADS_Y)
fn main(${GEMM_PARAMETERS}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * HALF;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let pair = tile_pair(tile, m);
    row_at[m] = select(row_of(pair) * X4, NONE, pair == NONE);
  }
${gemmBody(shape, packed, "place * 2u * I + min(first + n % HALF, I - 1u) + select(I, 0u, n < HALF)")}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u * THREADS_Y + at.y);
  if (pair${r} != NONE) {
${lines(
  outputs,
  (c) => `    let col${c} = first + ${c}u * THREADS_X + at.x;
    if (col${c} < I) {
      let matrix_row = place * 2u * I + col${c};
      let g = row_scale(matrix_row) * s${r}_${c}${expertBias ? " + biases[matrix_row]" : ""};
      let u = row_scale(matrix_row + I) * s${r}_${outputs + c}${expertBias ? " + biases[matrix_row + I]" : ""};
      out[pair${r} * I + col${c}] = activate(g, u);
    }`,
)}
  }`,
)}
}`,
  };
}
