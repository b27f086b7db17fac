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

export interface MatvecGateUpOptions {
  /** Columns of the input; a multiple of 8. */
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly format: ExpertFormat;
  readonly lookup: Extract<Lookup, { kind: "direct" | "grouped" }>;
  readonly shape: MatvecShape;
}

/**
 * The first half of a SwiGLU FFN for few rows: out[pair, i] = silu(x[row]·gate[slot, i]) · (x[row]·up[slot, i]).
 *
 * 0 counts; 1 x f32 [numRows, hiddenSize]; 2 weights in `format` [numSlots, 2·intermediateSize, hiddenSize], gate above
 * up; 3 out f32 [numPairs, intermediateSize]; 4 tiles; 5 scales of the weights, where the format has them
 * A workgroup computes `shape.columns` columns of up to `lookup.rows` rows.
 */
export function matvecGateUp(options: MatvecGateUpOptions): Kernel<StepSizes> {
  const { hiddenSize, intermediateSize, format, lookup, shape } = options;
  const packed = packedWeights(format, hiddenSize);
  const { columns, reduce } = shape;
  const { rows } = lookup;
  return {
    label: `${matvecName(shape)} gate-up ${hiddenSize}→${intermediateSize} ${format} ${lookup.kind}×${rows}`,
    grid: (sizes) => [ceilDiv(intermediateSize, columns), numTiles(lookup, sizes), 1],
    workgroupBytes: matvecBytes(shape, rows * 2 * columns),
    wgsl: /* wgsl */ `${MATVEC_ENABLE[reduce]}
${COUNTS}
const LOADS = ${packed.loads}u;
const X4 = ${hiddenSize / 4}u;
const I = ${intermediateSize}u;
const ROWS = ${rows}u;
const COLUMNS = ${columns}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${packed.scaled ? "@group(0) @binding(5) var<storage, read> scales: array<u32>;" : ""}
${LOOKUP[lookup.kind]}
${packed.wgsl}
${matvecDeclarations(shape, rows * 2 * columns)}

@compute @workgroup_size(THREADS)
fn main(${MATVEC_PARAMETERS[reduce]}) {
  let tile = group.y;
  let slot = tile_slot(tile);
  if (slot == NONE) { return; }
  let first = group.x * COLUMNS;
${lines(columns, (c) => `  let of${c} = slot * 2u * I + min(first + ${c}u, I - 1u);`)}
${lines(columns, (c) => `  let of${columns + c} = of${c} + I;`)}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u);
  let row${r} = row_of(select(pair${r}, 0u, pair${r} == NONE)) * X4;`,
)}
${matvecBody(shape, packed, rows, 2 * columns)}
  for (var j = thread; j < ROWS * COLUMNS; j += THREADS) {
    let pair = tile_pair(tile, j / COLUMNS);
    let c = j % COLUMNS;
    let col = first + c;
    if (pair == NONE || col >= I) { continue; }
    let at = (j / COLUMNS) * 2u * COLUMNS + c;
    let g = row_scale(slot * 2u * I + col) * total(at, num_partials);
    let u = row_scale(slot * 2u * I + I + col) * total(at + COLUMNS, num_partials);
    out[pair * I + col] = g / (1.0 + exp(-g)) * u;
  }
}`,
  };
}
