import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { numMatrices, plainBindings, type PlainLookup, type PlainProduct } from "./linear-rows.ts";
import {
  lines,
  MATVEC_ENABLE,
  MATVEC_PARAMETERS,
  matvecBody,
  matvecBytes,
  matvecDeclarations,
  matvecName,
  type MatvecShape,
} from "./matvec.ts";
import { packedWeights } from "./packed-weights.ts";
import { numTiles } from "./tile.ts";

export interface MatvecLinearOptions extends PlainProduct {
  readonly lookup: PlainLookup;
  readonly shape: MatvecShape;
}

/**
 * out[row, :] = x[row, :] · weightsᵀ for few rows, accumulated in f32.
 *
 * 0 counts; 1 x f32 [numRows, k]; 2 weights in `format` [n, k]; 3 out f32 [numRows, stride], the columns 0 … n-1;
 * then bias f32 [n] (storeBiased, addBiased) or scale f32 [numRows] (addScaled); then the weights' scales, where the
 * format has them. With heads: x [numRows, tokenStride] of heads, weights [numHeads, n, k], out [numRows, numHeads, outStride]
 * A workgroup computes `shape.columns` columns of up to `lookup.rows` rows.
 */
export function matvecLinear(options: MatvecLinearOptions): Kernel<StepSizes> {
  const { k, n, format, lookup, epilogue, shape } = options;
  const packed = packedWeights(format, k);
  const { columns, reduce } = shape;
  const { rows } = lookup;
  return {
    label: `${matvecName(shape)} linear ${k}→${n} ${format} ${lookup.kind}×${rows} ${epilogue}`,
    grid: (sizes) => [ceilDiv(n, columns), numTiles(lookup, sizes), numMatrices(options)],
    workgroupBytes: matvecBytes(shape, rows * columns),
    wgsl: /* wgsl */ `${MATVEC_ENABLE[reduce]}
${COUNTS}
const LOADS = ${packed.loads}u;
const ROWS = ${rows}u;
const COLUMNS = ${columns}u;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
${plainBindings(options, lookup.kind, packed.scaled)}
${packed.wgsl}
${matvecDeclarations(shape, rows * columns)}

@compute @workgroup_size(THREADS)
fn main(${MATVEC_PARAMETERS[reduce]}) {
  let tile = group.y;
  let head = group.z;
  let first = group.x * COLUMNS;
${lines(columns, (c) => `  let of${c} = head * N + min(first + ${c}u, N - 1u);`)}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u);
  let row${r} = input_row(select(pair${r}, 0u, pair${r} == NONE), head);`,
)}
${matvecBody(shape, packed, rows, columns)}
  for (var j = thread; j < ROWS * COLUMNS; j += THREADS) {
    let row = tile_pair(tile, j / COLUMNS);
    let col = first + j % COLUMNS;
    if (row == NONE || col >= N) { continue; }
    put(row, head, col, row_scale(head * N + col) * total(j, num_partials));
  }
}`,
  };
}
