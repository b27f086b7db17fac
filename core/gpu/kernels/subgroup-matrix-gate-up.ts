import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { activationWgsl } from "./activation.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings } from "./expert-bindings.ts";
import { lines } from "./matvec.ts";
import { packedWeights } from "./packed-weights.ts";
import {
  layDown,
  SUBGROUP_MATRIX_ENABLE,
  SUBGROUP_MATRIX_PARAMETERS,
  subgroupMatrixBody,
  subgroupMatrixBytes,
  subgroupMatrixColumns,
  subgroupMatrixDeclarations,
  subgroupMatrixGrid,
  subgroupMatrixName,
  subgroupMatrixRows,
  type SubgroupMatrixShape,
} from "./subgroup-matrix.ts";
import { numTiles } from "./tile.ts";

/**
 * The first half of the experts of a bank for many rows, by subgroup matrices; needs shader-f16, subgroups and
 * chromium-experimental-subgroup-matrix.
 *
 * Bindings as of `gemmGateUp`. Half of a subgroup's matrices are of gate, half the same of up.
 */
export function subgroupMatrixGateUp(
  sizes: ExpertSizes,
  format: ExpertFormat,
  shape: SubgroupMatrixShape,
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, activation, expertBias } = sizes;
  const packed = packedWeights(format, hiddenSize);
  const lookup = { kind: "grouped", rows: subgroupMatrixRows(shape) } as const;
  const { M, N, block } = shape;
  const [columns, rows] = block;
  const outputs = columns / 2;
  return {
    label: `${subgroupMatrixName(shape)} gate-up ${hiddenSize}→${width} ${format}`,
    grid: subgroupMatrixGrid(shape, 2 * width, (step) => numTiles(lookup, step)),
    workgroupBytes: subgroupMatrixBytes(shape, 2),
    wgsl: /* wgsl */ `${SUBGROUP_MATRIX_ENABLE}
${COUNTS}
const I = ${width}u;
const ROWS = TILE_ROWS;
const HALF = ${outputs * N}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${activationWgsl(activation, "f32")}
${subgroupMatrixDeclarations(shape, packed, hiddenSize, 2)}
// Matrix row number n of the workgroup's: of each subgroup's columns first those of gate, then the same of up.
fn weight_row(place: u32, first: u32, n: u32) -> u32 {
  let within = n % SUBGROUP_COLUMNS;
  let col = first + n / SUBGROUP_COLUMNS * HALF + within % HALF;
  return place * 2u * I + min(col, I - 1u) + select(I, 0u, within < HALF);
}
fn store(tile: u32, place: u32, m: u32, col: u32, gate: f32, up: f32) {
  let pair = tile_pair(tile, m);
  if (pair == NONE || col >= I) { return; }
  let matrix_row = place * 2u * I + col;
  let factor = row_factor[m];
  let g = factor * row_scale(matrix_row) * gate${expertBias ? " + biases[matrix_row]" : ""};
  let u = factor * row_scale(matrix_row + I) * up${expertBias ? " + biases[matrix_row + I]" : ""};
  out[pair * I + col] = activate(g, u);
}

@compute @workgroup_size(THREADS)
fn main(${SUBGROUP_MATRIX_PARAMETERS}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * ${subgroupMatrixColumns(shape) / 2}u;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let pair = tile_pair(tile, m);
    row_at[m] = select(row_of(pair) * X4, NONE, pair == NONE);
  }
${subgroupMatrixBody(shape, packed, "weight_row(place, first, n)")}
  let laid = subgroup * 2u * RESULT;
  let first_of_subgroup = first + subgroup % SUBGROUPS_X * HALF;
${lines(rows * outputs, (j) => {
  const [r, c] = [Math.floor(j / outputs), j % outputs];
  return `${layDown(`c${r}_${c}`, 2, 0, N)}
${layDown(`c${r}_${outputs + c}`, 2, 1, N)}
  workgroupBarrier();
  for (var t = lane; t < RESULT; t += SUBGROUP) {
    let col = first_of_subgroup + ${c * N}u + t % ${N}u;
    store(tile, place, row0 + ${r * M}u + t / ${N}u, col, results[laid + t], results[laid + RESULT + t]);
  }
  workgroupBarrier();`;
})}
}`,
  };
}
