import type { ExpertFormat } from "../../expert-format.ts";
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
import { lines } from "./matvec.ts";
import { LINEAR_EPILOGUE, type LinearEpilogue, scalesBinding } from "./matvec-linear.ts";
import { packedWeights } from "./packed-weights.ts";
import { LOOKUP, numTiles } from "./tile.ts";

export interface GemmLinearOptions {
  /** Columns of the input; a multiple of 8. */
  readonly k: number;
  /** Columns of the result. */
  readonly n: number;
  readonly format: ExpertFormat;
  readonly rows: "tokens" | "samples";
  readonly epilogue: LinearEpilogue;
  readonly shape: GemmShape;
}

/**
 * out[row, :] = x[row, :] · weightsᵀ for many rows, accumulated in f32.
 *
 * 0 counts; 1 x f32 [numRows, k]; 2 weights in `format` [n, k]; 3 out f32 [numRows, n];
 * then scale f32 [numRows] (addScaled); then the weights' scales, where the format has them
 */
export function gemmLinear(options: GemmLinearOptions): Kernel<StepSizes> {
  const { k, n, format, rows: kind, epilogue, shape } = options;
  const packed = packedWeights(format, k);
  const lookup = { kind, rows: gemmRows(shape) } as const;
  const [columns, rows] = shape.block;
  return {
    label: `${gemmName(shape)} linear ${k}→${n} ${format} ${kind} ${epilogue}`,
    grid: gemmGrid(shape, n, (step) => numTiles(lookup, step)),
    workgroupBytes: gemmBytes(shape),
    wgsl: /* wgsl */ `${GEMM_ENABLE[shape.tile]}
${COUNTS}
const N = ${n}u;
const ROWS = TILE_ROWS;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${LINEAR_EPILOGUE[epilogue].binding}
${packed.scaled ? `@group(0) @binding(${scalesBinding(epilogue)}) var<storage, read> scales: array<u32>;` : ""}
${LOOKUP[kind]}
${packed.wgsl}
${gemmDeclarations(shape, packed, k)}

@compute @workgroup_size(THREADS_X, THREADS_Y)
fn main(${GEMM_PARAMETERS}) {
  let tile = group.y;
  let first = group.x * TILE_COLUMNS;
  for (var m = thread; m < TILE_ROWS; m += THREADS) {
    let row = tile_pair(tile, m);
    row_at[m] = select(row * X4, NONE, row == NONE);
  }
${gemmBody(shape, packed, "min(first + n, N - 1u)")}
${lines(rows * columns, (j) => {
  const [r, c] = [Math.floor(j / columns), j % columns];
  return `  {
    let row = tile_pair(tile, ${r}u * THREADS_Y + at.y);
    let col = first + ${c}u * THREADS_X + at.x;
    let value = row_scale(min(col, N - 1u)) * s${r}_${c};
    if (row != NONE && col < N) { ${LINEAR_EPILOGUE[epilogue].statement} }
  }`;
})}
}`,
  };
}
