import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { activationWgsl } from "./activation.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings, type FfnLookup } from "./expert-bindings.ts";
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

/**
 * The first half of the experts of a bank, or of one FFN that all rows take, for few rows:
 * out[pair, i] = activation(x[row]·gate[slot, i] + gateBias[slot, i], x[row]·up[slot, i] + upBias[slot, i]).
 *
 * 1 x f32 [numRows, hiddenSize]; 2 weights [slots of the bank, 2·intermediateSize, hiddenSize], gate above up;
 * 3 out f32 [numPairs, intermediateSize]; 5 scales likewise; 7 biases f32 [slots of the bank, 2·intermediateSize];
 * else as expert-bindings.ts
 * A workgroup computes `shape.columns` columns of up to `lookup.rows` rows.
 */
export function matvecGateUp(
  sizes: ExpertSizes,
  format: ExpertFormat,
  lookup: FfnLookup,
  shape: MatvecShape,
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, activation, expertBias } = sizes;
  const packed = packedWeights(format, hiddenSize);
  const { columns, reduce } = shape;
  const { rows } = lookup;
  return {
    label: `${matvecName(shape)} gate-up ${hiddenSize}→${width} ${format} ${lookup.kind}×${rows}`,
    grid: (step) => [ceilDiv(width, columns), numTiles(lookup, step), 1],
    workgroupBytes: matvecBytes(shape, rows * 2 * columns),
    wgsl: /* wgsl */ `${MATVEC_ENABLE[reduce]}
${COUNTS}
const LOADS = ${packed.loads}u;
const X4 = ${hiddenSize / 4}u;
const I = ${width}u;
const ROWS = ${rows}u;
const COLUMNS = ${columns}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${activationWgsl(activation, "f32")}
${matvecDeclarations(shape, rows * 2 * columns)}

@compute @workgroup_size(THREADS)
fn main(${MATVEC_PARAMETERS[reduce]}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * COLUMNS;
${lines(columns, (c) => `  let of${c} = place * 2u * I + min(first + ${c}u, I - 1u);`)}
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
    let gate_row = place * 2u * I + col;
    let g = row_scale(gate_row) * total(at, num_partials)${expertBias ? " + biases[gate_row]" : ""};
    let u = row_scale(gate_row + I) * total(at + COLUMNS, num_partials)${expertBias ? " + biases[gate_row + I]" : ""};
    out[pair * I + col] = activate(g, u);
  }
}`,
  };
}
