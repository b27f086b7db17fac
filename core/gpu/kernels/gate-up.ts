import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { type InputLoads, sharedInput } from "./shared-input.ts";
import { fourColumns, LOOKUP, type Lookup, numTiles } from "./tile.ts";

export interface GateUpOptions {
  /** Columns of the input; a multiple of 8. */
  readonly hiddenSize: number;
  /** Width of the FFN; even. */
  readonly intermediateSize: number;
  readonly weights: WeightsDtype;
  readonly lookup: Lookup;
  /** How invocations come by the input's rows; own unless told otherwise. */
  readonly loads?: InputLoads;
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
  const { hiddenSize, intermediateSize, weights, lookup, loads = "own" } = options;
  const input = sharedInput(loads);
  return {
    label: `gate-up ${hiddenSize}→${intermediateSize} ${weights} ${lookup.kind}×${lookup.rows} ${loads}`,
    grid: (sizes) => [ceilDiv(intermediateSize / 2, WORKGROUP), numTiles(lookup, sizes), 1],
    wgsl: /* wgsl */ `${input.enable}
${COUNTS}
const K8 = ${hiddenSize / 8}u;
const I = ${intermediateSize}u;
const ROWS = ${lookup.rows}u;
@group(0) @binding(1) var<storage, read> x: array<${input.element}>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read_write> out: array<vec2<f32>>;
${LOOKUP[lookup.kind]}
${WEIGHTS_8[weights]}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>${input.parameters}) {
  let col = id.x * 2u;
  let tile = group.y;
  let slot = tile_slot(tile);
  if (slot == NONE) { return; }
  // Two columns of gate, then the same two of up; beyond the last ones some of them again, for what is shared in loading.
  let at0 = (slot * 2u * I + min(col, I - 2u)) * K8;
  let at1 = at0 + K8;
  let at2 = at0 + I * K8;
  let at3 = at2 + K8;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    row[r] = ${input.rowStart("row_of(select(pair, 0u, pair == NONE))", hiddenSize)};
  }
  ${fourColumns(input)}
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    if (pair == NONE || col >= I) { continue; }
    let g = acc[r].xy;
    out[(pair * I + col) / 2u] = g / (1.0 + exp(-g)) * acc[r].zw;
  }
}`,
  };
}
