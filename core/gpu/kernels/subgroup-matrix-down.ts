import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
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
  subgroupMatrixDeclarations,
  subgroupMatrixGrid,
  subgroupMatrixName,
  subgroupMatrixRows,
  type SubgroupMatrixShape,
} from "./subgroup-matrix.ts";
import { numTiles } from "./tile.ts";

/**
 * The second half of the experts of a bank for many rows, by subgroup matrices; needs shader-f16, subgroups and
 * chromium-experimental-subgroup-matrix.
 *
 * Bindings as of `gemmDown`.
 */
export function subgroupMatrixDown(
  sizes: ExpertSizes,
  format: ExpertFormat,
  shape: SubgroupMatrixShape,
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, expertBias } = sizes;
  const packed = packedWeights(format, width);
  const lookup = { kind: "grouped", rows: subgroupMatrixRows(shape) } as const;
  const { M, N, block } = shape;
  const [columns, rows] = block;
  return {
    label: `${subgroupMatrixName(shape)} down ${width}→${hiddenSize} ${format}`,
    grid: subgroupMatrixGrid(shape, hiddenSize, (step) => numTiles(lookup, step)),
    workgroupBytes: subgroupMatrixBytes(shape, 1),
    wgsl: /* wgsl */ `${SUBGROUP_MATRIX_ENABLE}
${COUNTS}
const H = ${hiddenSize}u;
const ROWS = TILE_ROWS;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${subgroupMatrixDeclarations(shape, packed, width, 1)}
fn store(tile: u32, place: u32, m: u32, col: u32, sum: f32) {
  let pair = tile_pair(tile, m);
  if (pair == NONE || col >= H) { return; }
  let matrix_row = place * H + col;
  out[pair * H + col] = row_factor[m] * row_scale(matrix_row) * sum${expertBias ? " + biases[matrix_row]" : ""};
}

@compute @workgroup_size(THREADS)
fn main(${SUBGROUP_MATRIX_PARAMETERS}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * TILE_COLUMNS;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let pair = tile_pair(tile, m);
    row_at[m] = select(pair * X4, NONE, pair == NONE);
  }
${subgroupMatrixBody(shape, packed, "place * H + min(first + n, H - 1u)")}
  let laid = subgroup * RESULT;
${lines(rows * columns, (j) => {
  const [r, c] = [Math.floor(j / columns), j % columns];
  return `${layDown(`c${r}_${c}`, 1, 0, N)}
  workgroupBarrier();
  for (var t = lane; t < RESULT; t += SUBGROUP) {
    let col = first + column0 + ${c * N}u + t % ${N}u;
    store(tile, place, row0 + ${r * M}u + t / ${N}u, col, results[laid + t]);
  }
  workgroupBarrier();`;
})}
}`,
  };
}
