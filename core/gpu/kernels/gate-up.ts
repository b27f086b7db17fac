import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { FOUR_COLUMNS, LOOKUP, type Lookup, numTiles } from "./tile.ts";

export interface GateUpOptions {
  /** Columns of the input; a multiple of 8. */
  readonly hiddenSize: number;
  /** Width of the FFN; even. */
  readonly intermediateSize: number;
  readonly weights: WeightsDtype;
  readonly lookup: Lookup;
}

const WORKGROUP = 32;

/**
 * The first half of a SwiGLU FFN: out[pair, i] = silu(x[row]·gate[slot, i]) · (x[row]·up[slot, i]), row = pair / topK.
 *
 * 0 counts; 1 x f32 [numRows, hiddenSize]; 2 weights f16|f32 [numSlots, 2·intermediateSize, hiddenSize], gate above up;
 * 3 out f32 [numPairs, intermediateSize]; 4 tiles (direct, grouped)
 * An invocation computes 2 columns of up to `rows` rows.
 */
export function gateUp(options: GateUpOptions): Kernel<StepSizes> {
  const { hiddenSize, intermediateSize, weights, lookup } = options;
  return {
    label: `gate-up ${hiddenSize}→${intermediateSize} ${weights} ${lookup.kind}×${lookup.rows}`,
    grid: (sizes) => [ceilDiv(intermediateSize / 2, WORKGROUP), numTiles(lookup, sizes), 1],
    wgsl: /* wgsl */ `
${COUNTS}
const K8 = ${hiddenSize / 8}u;
const I = ${intermediateSize}u;
const ROWS = ${lookup.rows}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read_write> out: array<vec2<f32>>;
${LOOKUP[lookup.kind]}
${WEIGHTS_8[weights]}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let col = id.x * 2u;
  let tile = id.y;
  let slot = tile_slot(tile);
  if (col >= I || slot == NONE) { return; }
  // Two columns of gate, then the same two of up.
  let at0 = (slot * 2u * I + col) * K8;
  let at1 = at0 + K8;
  let at2 = at0 + I * K8;
  let at3 = at2 + K8;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    row[r] = row_of(select(pair, 0u, pair == NONE)) * K8 * 2u;
  }
  ${FOUR_COLUMNS}
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    if (pair == NONE) { continue; }
    let g = acc[r].xy;
    out[(pair * I + col) / 2u] = g / (1.0 + exp(-g)) * acc[r].zw;
  }
}`,
  };
}
