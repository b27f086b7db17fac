import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
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
import { LOOKUP, type Lookup, numTiles } from "./tile.ts";

/** How a kernel over one matrix finds its rows. */
export type PlainLookup = Extract<Lookup, { kind: "tokens" | "samples" }>;

export interface MatvecLinearOptions {
  /** Columns of the input; a multiple of 8. */
  readonly k: number;
  /** Columns of the result. */
  readonly n: number;
  readonly format: ExpertFormat;
  readonly lookup: PlainLookup;
  readonly epilogue: LinearEpilogue;
  readonly shape: MatvecShape;
}

/** What happens to a result: stored, added to what is there, or added after scaling by `scale[row]`. */
export type LinearEpilogue = "store" | "add" | "addScaled";

/** WGSL of the epilogues: a binding, and a statement over `value`, `row` and `col`. */
export const LINEAR_EPILOGUE = {
  store: { binding: "", statement: "out[row * N + col] = value;" },
  add: { binding: "", statement: "out[row * N + col] += value;" },
  addScaled: {
    binding: "@group(0) @binding(4) var<storage, read> scale: array<f32>; // [numTokens]",
    statement: "out[row * N + col] += scale[row] * value;",
  },
} as const;

/** Index of the binding after those that the epilogue takes. */
export function scalesBinding(epilogue: LinearEpilogue): 4 | 5 {
  return epilogue === "addScaled" ? 5 : 4;
}

/**
 * out[row, :] = x[row, :] · weightsᵀ for few rows, accumulated in f32.
 *
 * 0 counts; 1 x f32 [numRows, k]; 2 weights in `format` [n, k]; 3 out f32 [numRows, n];
 * then scale f32 [numRows] (addScaled); then the weights' scales, where the format has them
 * A workgroup computes `shape.columns` columns of up to `lookup.rows` rows.
 */
export function matvecLinear(options: MatvecLinearOptions): Kernel<StepSizes> {
  const { k, n, format, lookup, epilogue, shape } = options;
  const packed = packedWeights(format, k);
  const { columns, reduce } = shape;
  const { rows } = lookup;
  return {
    label: `${matvecName(shape)} linear ${k}→${n} ${format} ${lookup.kind}×${rows} ${epilogue}`,
    grid: (sizes) => [ceilDiv(n, columns), numTiles(lookup, sizes), 1],
    workgroupBytes: matvecBytes(shape, rows * columns),
    wgsl: /* wgsl */ `${MATVEC_ENABLE[reduce]}
${COUNTS}
const LOADS = ${packed.loads}u;
const X4 = ${k / 4}u;
const N = ${n}u;
const ROWS = ${rows}u;
const COLUMNS = ${columns}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${LINEAR_EPILOGUE[epilogue].binding}
${packed.scaled ? `@group(0) @binding(${scalesBinding(epilogue)}) var<storage, read> scales: array<u32>;` : ""}
${LOOKUP[lookup.kind]}
${packed.wgsl}
${matvecDeclarations(shape, rows * columns)}

@compute @workgroup_size(THREADS)
fn main(${MATVEC_PARAMETERS[reduce]}) {
  let tile = group.y;
  let first = group.x * COLUMNS;
${lines(columns, (c) => `  let of${c} = min(first + ${c}u, N - 1u);`)}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u);
  let row${r} = select(pair${r}, 0u, pair${r} == NONE) * X4;`,
)}
${matvecBody(shape, packed, rows, columns)}
  for (var j = thread; j < ROWS * COLUMNS; j += THREADS) {
    let row = tile_pair(tile, j / COLUMNS);
    let col = first + j % COLUMNS;
    if (row == NONE || col >= N) { continue; }
    let value = row_scale(col) * total(j, num_partials);
    ${LINEAR_EPILOGUE[epilogue].statement}
  }
}`,
  };
}
