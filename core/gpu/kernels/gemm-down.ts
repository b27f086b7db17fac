import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings } from "./expert-bindings.ts";
import {
  GEMM_ENABLE,
  GEMM_PARAMETERS,
  gemmBody,
  gemmBytes,
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
 * The second half of the experts of a bank for many rows: out[pair, h] = inner[pair]·down[slot, h] + downBias[slot, h].
 *
 * 1 inner f32 [numPairs, intermediateSize]; 2 weights [slots of the bank, hiddenSize, intermediateSize];
 * 3 out f32 [numPairs, hiddenSize]; 4 tiles of `gemmRows(shape)` pairs; 5 scales likewise;
 * 7 biases f32 [slots of the bank, hiddenSize]; else as expert-bindings.ts
 */
export function gemmDown(
  sizes: ExpertSizes,
  format: ExpertFormat,
  shape: GemmShape,
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, expertBias } = sizes;
  const packed = packedWeights(format, width);
  const lookup = { kind: "grouped", rows: gemmRows(shape) } as const;
  const [columns, rows] = shape.block;
  return {
    label: `${gemmName(shape)} down ${width}→${hiddenSize} ${format}`,
    grid: gemmGrid(shape, hiddenSize, (step) => numTiles(lookup, step)),
    workgroupBytes: gemmBytes(shape),
    wgsl: /* wgsl */ `${GEMM_ENABLE[shape.tile]}
${COUNTS}
const H = ${hiddenSize}u;
const ROWS = TILE_ROWS;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${gemmDeclarations(shape, packed, width)}

@compute @workgroup_size(THREADS_X, THREADS_Y)
fn main(${GEMM_PARAMETERS}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * TILE_COLUMNS;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let pair = tile_pair(tile, m);
    row_at[m] = select(pair * X4, NONE, pair == NONE);
  }
${gemmBody(shape, packed, "place * H + min(first + n, H - 1u)")}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u * THREADS_Y + at.y);
  if (pair${r} != NONE) {
${lines(
  columns,
  (c) => `    let col${c} = first + ${c}u * THREADS_X + at.x;
    if (col${c} < H) {
      let matrix_row = place * H + col${c};
      out[pair${r} * H + col${c}] = row_scale(matrix_row) * s${r}_${c}${expertBias ? " + biases[matrix_row]" : ""};
    }`,
)}
  }`,
)}
}`,
  };
}
