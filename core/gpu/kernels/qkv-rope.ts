import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { type InputLoads, sharedInput } from "./shared-input.ts";
import { fourColumns, LOOKUP, numTiles } from "./tile.ts";

export interface QkvRopeOptions {
  readonly hiddenSize: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  /** A multiple of 4. */
  readonly headDim: number;
  readonly weights: WeightsDtype;
  /** Rows that one invocation works on. */
  readonly rows: 1 | 4;
  /** How invocations come by the input's rows; own unless told otherwise. */
  readonly loads?: InputLoads;
}

const WORKGROUP = 32;

/**
 * q, k and v projections with bias, rotary positions on q and k (half-split pairs), k and v written into the paged cache.
 *
 * 0 counts; 1 x f32 [numTokens, hiddenSize]; 2 weights f16|f32 [(numHeads + 2·numKvHeads)·headDim, hiddenSize], q above k above v;
 * 3 bias f32 [(numHeads + 2·numKvHeads)·headDim]; 4 rope f32 [maxPositions, headDim/2, 2] (cos, sin);
 * 5 positions u32 [numTokens]; 6 cacheSlots u32 [numTokens]; 7 q f32 [numTokens, numHeads·headDim];
 * 8 cache f32 [numSlots, 2, numKvHeads·headDim], k before v
 * An invocation computes columns p, p+1 and their partners headDim/2 further, of up to `rows` rows.
 */
export function qkvRope(options: QkvRopeOptions): Kernel<StepSizes> {
  const { hiddenSize, numHeads, numKvHeads, headDim, weights, rows, loads = "own" } = options;
  const input = sharedInput(loads);
  const columns = (numHeads + 2 * numKvHeads) * headDim;
  return {
    label: `qkv-rope ${weights} ×${rows} ${loads}`,
    grid: (sizes) => [
      ceilDiv(columns / 4, WORKGROUP),
      numTiles({ kind: "tokens", rows }, sizes),
      1,
    ],
    wgsl: /* wgsl */ `${input.enable}
${COUNTS}
const K8 = ${hiddenSize / 8}u;
const N = ${columns}u;
const D = ${headDim}u;
const HALF = ${headDim / 2}u;
const HEADS = ${numHeads}u;
const KV_HEADS = ${numKvHeads}u;
const ROWS = ${rows}u;
@group(0) @binding(1) var<storage, read> x: array<${input.element}>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read> bias: array<f32>;
@group(0) @binding(4) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
@group(0) @binding(6) var<storage, read> cache_slots: array<u32>;
@group(0) @binding(7) var<storage, read_write> q: array<f32>;
@group(0) @binding(8) var<storage, read_write> cache: array<f32>;
${LOOKUP.tokens}
${WEIGHTS_8[weights]}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>${input.parameters}) {
  // Beyond the last columns those of the last invocation again, for what is shared in loading.
  let quad = min(id.x, N / 4u - 1u);
  let head = quad * 4u / D;
  let p = (quad % (D / 4u)) * 2u;
  let col = head * D + p;
  let tile = group.y;
  let at0 = col * K8;
  let at1 = at0 + K8;
  let at2 = at0 + HALF * K8;
  let at3 = at2 + K8;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let token = tile_pair(tile, r);
    row[r] = ${input.rowStart("select(token, 0u, token == NONE)", hiddenSize)};
  }
  ${fourColumns(input)}
  let b = vec4<f32>(bias[col], bias[col + 1u], bias[col + HALF], bias[col + HALF + 1u]);
  for (var r = 0u; r < ROWS; r++) {
    let token = tile_pair(tile, r);
    if (token == NONE || id.x != quad) { continue; }
    let plain = acc[r] + b;
    let turn0 = rope[positions[token] * HALF + p];
    let turn1 = rope[positions[token] * HALF + p + 1u];
    let c = vec2<f32>(turn0.x, turn1.x);
    let s = vec2<f32>(turn0.y, turn1.y);
    let turned = vec4<f32>(plain.xy * c - plain.zw * s, plain.zw * c + plain.xy * s);
    if (head < HEADS) {
      let o = token * HEADS * D + col;
      q[o] = turned.x;
      q[o + 1u] = turned.y;
      q[o + HALF] = turned.z;
      q[o + HALF + 1u] = turned.w;
    } else {
      // Columns of k and v follow those of q, as they do in a slot of the cache.
      let value = select(plain, turned, head < HEADS + KV_HEADS);
      let o = cache_slots[token] * 2u * KV_HEADS * D + col - HEADS * D;
      cache[o] = value.x;
      cache[o + 1u] = value.y;
      cache[o + HALF] = value.z;
      cache[o + HALF + 1u] = value.w;
    }
  }
}`,
  };
}
