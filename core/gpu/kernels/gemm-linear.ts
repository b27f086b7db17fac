import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
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
import { numMatrices, plainBindings, type PlainLookup, type PlainProduct } from "./linear-rows.ts";
import { lines } from "./matvec.ts";
import { packedWeights } from "./packed-weights.ts";
import { numTiles } from "./tile.ts";

export interface GemmLinearOptions extends PlainProduct {
  readonly rows: PlainLookup["kind"];
  readonly shape: GemmShape;
}

/**
 * out[row, :] = x[row, :] · weightsᵀ for many rows, accumulated in f32.
 *
 * Bindings as of `matvecLinear`.
 */
export function gemmLinear(options: GemmLinearOptions): Kernel<StepSizes> {
  const { k, n, format, rows: kind, epilogue, shape } = options;
  const packed = packedWeights(format, k);
  const lookup = { kind, rows: gemmRows(shape) } as const;
  const [columns, rows] = shape.block;
  const tiles = (step: StepSizes) => numTiles(lookup, step);
  return {
    label: `${gemmName(shape)} linear ${k}→${n} ${format} ${kind} ${epilogue}`,
    grid: gemmGrid(shape, n, tiles, numMatrices(options)),
    workgroupBytes: gemmBytes(shape),
    wgsl: /* wgsl */ `${GEMM_ENABLE[shape.tile]}
${COUNTS}
const ROWS = TILE_ROWS;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
${plainBindings(options, kind, packed.scaled)}
${packed.wgsl}
${gemmDeclarations(shape, packed, k)}

@compute @workgroup_size(THREADS_X, THREADS_Y)
fn main(${GEMM_PARAMETERS}) {
  let tile = group.y;
  let head = group.z;
  let first = group.x * TILE_COLUMNS;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let row = tile_pair(tile, m);
    row_at[m] = select(input_row(row, head), NONE, row == NONE);
  }
${gemmBody(shape, packed, "head * N + min(first + n, N - 1u)")}
${lines(rows * columns, (j) => {
  const [r, c] = [Math.floor(j / columns), j % columns];
  return `  {
    let row = tile_pair(tile, ${r}u * THREADS_Y + at.y);
    let col = first + ${c}u * THREADS_X + at.x;
    if (row != NONE && col < N) { put(row, head, col, row_scale(head * N + col) * s${r}_${c}); }
  }`;
})}
}`,
  };
}
