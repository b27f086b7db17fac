import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings, type ExpertLookup } from "./expert-bindings.ts";
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
 * The second half of the experts of a bank for few rows: out[pair, h] = inner[pair]·down[slot, h] + downBias[slot, h].
 *
 * 1 inner f32 [numPairs, intermediateSize]; 2 weights [slots of the bank, hiddenSize, intermediateSize];
 * 3 out f32 [numPairs, hiddenSize]; 5 scales likewise; 7 biases f32 [slots of the bank, hiddenSize];
 * else as expert-bindings.ts
 * A workgroup computes `shape.columns` columns of up to `lookup.rows` rows.
 */
export function matvecDown(
  sizes: ExpertSizes,
  format: ExpertFormat,
  lookup: ExpertLookup,
  shape: MatvecShape,
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, expertBias } = sizes;
  const packed = packedWeights(format, width);
  const { columns, reduce } = shape;
  const { rows } = lookup;
  return {
    label: `${matvecName(shape)} down ${width}→${hiddenSize} ${format} ${lookup.kind}×${rows}`,
    grid: (step) => [ceilDiv(hiddenSize, columns), numTiles(lookup, step), 1],
    workgroupBytes: matvecBytes(shape, rows * columns),
    wgsl: /* wgsl */ `${MATVEC_ENABLE[reduce]}
${COUNTS}
const LOADS = ${packed.loads}u;
const X4 = ${width / 4}u;
const H = ${hiddenSize}u;
const ROWS = ${rows}u;
const COLUMNS = ${columns}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${packed.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${expertBindings(lookup)}
${packed.wgsl}
${matvecDeclarations(shape, rows * columns)}

@compute @workgroup_size(THREADS)
fn main(${MATVEC_PARAMETERS[reduce]}) {
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  let first = group.x * COLUMNS;
${lines(columns, (c) => `  let of${c} = place * H + min(first + ${c}u, H - 1u);`)}
${lines(
  rows,
  (r) => `  let pair${r} = tile_pair(tile, ${r}u);
  let row${r} = select(pair${r}, 0u, pair${r} == NONE) * X4;`,
)}
${matvecBody(shape, packed, rows, columns)}
  for (var j = thread; j < ROWS * COLUMNS; j += THREADS) {
    let pair = tile_pair(tile, j / COLUMNS);
    let col = first + j % COLUMNS;
    if (pair == NONE || col >= H) { continue; }
    out[pair * H + col] = row_scale(place * H + col) * total(j, num_partials)${expertBias ? " + biases[place * H + col]" : ""};
  }
}`,
  };
}
