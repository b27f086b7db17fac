import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { type InputLoads, sharedInput } from "./shared-input.ts";
import { fourColumns, LOOKUP, type Lookup, numTiles } from "./tile.ts";

export interface LinearOptions {
  /** Columns of the input; a multiple of 8. */
  readonly k: number;
  /** Columns of the result; a multiple of 4. */
  readonly n: number;
  /** Columns from one row of the result to the next, where it is part of wider rows; a multiple of 4. */
  readonly stride?: number;
  readonly weights: WeightsDtype;
  readonly lookup: Lookup;
  readonly epilogue: LinearEpilogue;
  /** What a result is multiplied by before it is added; 1 unless told otherwise. */
  readonly factor?: number;
  /** How invocations come by the input's rows; own unless told otherwise. */
  readonly loads?: InputLoads;
}

/** What happens to a result: stored, or added to what is there, after a bias or scaling by `scale[row]`. */
export type LinearEpilogue = "store" | "storeBiased" | "add" | "addBiased" | "addScaled";

const BIAS = "@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>; // [n]";

const EPILOGUE = {
  store: { binding: "", statement: "out[pair * STRIDE4 + id.x] = acc[r];" },
  storeBiased: { binding: BIAS, statement: "out[pair * STRIDE4 + id.x] = acc[r] + bias[id.x];" },
  add: { binding: "", statement: "out[pair * STRIDE4 + id.x] += FACTOR * acc[r];" },
  addBiased: {
    binding: BIAS,
    statement: "out[pair * STRIDE4 + id.x] += FACTOR * (acc[r] + bias[id.x]);",
  },
  addScaled: {
    binding: "@group(0) @binding(4) var<storage, read> scale: array<f32>; // [numTokens]",
    statement: "out[pair * STRIDE4 + id.x] += FACTOR * scale[pair] * acc[r];",
  },
} as const;

const WORKGROUP = 32;

/**
 * out[pair, :] = x[pair, :] · weights[slot]ᵀ, accumulated in f32.
 *
 * 0 counts; 1 x f32 [numPairs, k]; 2 weights f16|f32 [numSlots, n, k]; 3 out f32 [numPairs, stride], the columns 0 … n-1;
 * 4 tiles (direct, grouped), bias f32 [n] (storeBiased, addBiased) or scale f32 [numTokens] (addScaled)
 * An invocation computes 4 columns of up to `rows` rows.
 */
export function linear(options: LinearOptions): Kernel<StepSizes> {
  const { k, n, stride = n, weights, lookup, epilogue, factor = 1, loads = "own" } = options;
  const input = sharedInput(loads);
  return {
    label: `linear ${k}→${n} ${weights} ${lookup.kind}×${lookup.rows} ${epilogue} ${loads}`,
    grid: (sizes) => [ceilDiv(n / 4, WORKGROUP), numTiles(lookup, sizes), 1],
    wgsl: /* wgsl */ `${input.enable}
${COUNTS}
const K8 = ${k / 8}u;
const N = ${n}u;
const STRIDE4 = ${stride / 4}u;
const FACTOR = f32(${factor});
const ROWS = ${lookup.rows}u;
@group(0) @binding(1) var<storage, read> x: array<${input.element}>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
${EPILOGUE[epilogue].binding}
${LOOKUP[lookup.kind]}
${WEIGHTS_8[weights]}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>${input.parameters}) {
  let col = id.x * 4u;
  let tile = group.y;
  let slot = tile_slot(tile);
  if (slot == NONE) { return; }
  // Beyond the last columns some of them again, for what is shared in loading.
  let at0 = (slot * N + min(col, N - 4u)) * K8;
  let at1 = at0 + K8;
  let at2 = at1 + K8;
  let at3 = at2 + K8;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    row[r] = ${input.rowStart("select(pair, 0u, pair == NONE)", k)};
  }
  ${fourColumns(input)}
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    if (pair != NONE && col < N) { ${EPILOGUE[epilogue].statement} }
  }
}`,
  };
}
