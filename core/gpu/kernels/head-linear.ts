import type { WeightsDtype } from "../../expert-device.ts";
import type { Kernel } from "../kernel.ts";
import { WEIGHT_ELEMENT, WEIGHTS_8 } from "../weights.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { sharedInput } from "./shared-input.ts";
import { fourColumns, LOOKUP, numTiles } from "./tile.ts";

export interface HeadLinearOptions {
  readonly numHeads: number;
  /** Columns of the input that are multiplied; a multiple of 8. */
  readonly k: number;
  /** Columns of the result; a multiple of 4. */
  readonly n: number;
  /** Columns of the input from one head to the next, and from one token to the next; multiples of 4. */
  readonly headStride: number;
  readonly tokenStride: number;
  /** Columns of the result from one head to the next; a multiple of 4. */
  readonly outStride: number;
  /** The columns behind the multiplied ones are turned by position into those behind the result's. */
  readonly rope?: { readonly dim: number; readonly interleaved: boolean };
  readonly weights: WeightsDtype;
  /** Rows that one invocation works on. */
  readonly rows: 1 | 4;
}

const WORKGROUP = 32;

/** WGSL of a pair's columns, counted from where the turned ones begin. */
const PAIR = {
  halves: "vec2<u32>(i, i + ROPE / 2u)",
  interleaved: "vec2<u32>(2u * i, 2u * i + 1u)",
} as const;

/** Invocations behind those that multiply turn two pairs each. */
function turning(dim: number, interleaved: boolean): string {
  return /* wgsl */ `
const ROPE = ${dim}u;
@group(0) @binding(4) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
fn turn(token: u32, head: u32, i: u32) {
  let begin = token * TOKEN4 * 4u + head * HEAD4 * 4u + K8 * 8u;
  let to = (token * HEADS + head) * OUT4 * 4u + N;
  let pair = ${PAIR[interleaved ? "interleaved" : "halves"]};
  let a = x[(begin + pair.x) / 4u][(begin + pair.x) % 4u];
  let b = x[(begin + pair.y) / 4u][(begin + pair.y) % 4u];
  let angle = rope[positions[token] * (ROPE / 2u) + i];
  out[to + pair.x] = a * angle.x - b * angle.y;
  out[to + pair.y] = b * angle.x + a * angle.y;
}`;
}

/**
 * out[token, head, :] = x[token, head, 0 … k-1] · weights[head]ᵀ: a matrix per head, as latent attention has them.
 *
 * 0 counts; 1 x f32 [numTokens, tokenStride] of heads [headStride]; 2 weights f16|f32 [numHeads, n, k];
 * 3 out f32 [numTokens, numHeads, outStride]; 4 rope f32 [maxPositions, rope.dim/2, 2] and 5 positions u32 [numTokens] (rope)
 * An invocation computes 4 columns of up to \`rows\` rows, or turns two pairs of each.
 */
export function headLinear(options: HeadLinearOptions): Kernel<StepSizes> {
  const { numHeads, k, n, headStride, tokenStride, outStride, rope, weights, rows } = options;
  const lookup = { kind: "tokens", rows } as const;
  return {
    label: `head-linear ${numHeads}×${k}→${n} ${weights} ×${rows}`,
    grid: (sizes) => [
      ceilDiv((n + (rope?.dim ?? 0)) / 4, WORKGROUP),
      numTiles(lookup, sizes),
      numHeads,
    ],
    wgsl: /* wgsl */ `
${COUNTS}
const HEADS = ${numHeads}u;
const K8 = ${k / 8}u;
const N = ${n}u;
const HEAD4 = ${headStride / 4}u;
const TOKEN4 = ${tokenStride / 4}u;
const OUT4 = ${outStride / 4}u;
const ROWS = ${rows}u;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> weights: array<${WEIGHT_ELEMENT[weights]}>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
${LOOKUP.tokens}
${WEIGHTS_8[weights]}
${rope === undefined ? "const ROPE = 0u;\nfn turn(token: u32, head: u32, i: u32) {}" : turning(rope.dim, rope.interleaved)}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let col = id.x * 4u;
  let tile = id.y;
  let head = id.z;
  if (col >= N) {
    for (var r = 0u; r < ROWS + counts.zero; r++) {
      let token = tile_pair(tile, r);
      if (token == NONE || col >= N + ROPE) { continue; }
      turn(token, head, (col - N) / 2u);
      turn(token, head, (col - N) / 2u + 1u);
    }
    return;
  }
  let at0 = (head * N + col) * K8;
  let at1 = at0 + K8;
  let at2 = at1 + K8;
  let at3 = at2 + K8;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let token = tile_pair(tile, r);
    row[r] = select(token, 0u, token == NONE) * TOKEN4 + head * HEAD4;
  }
  ${fourColumns(sharedInput("own"))}
  for (var r = 0u; r < ROWS; r++) {
    let token = tile_pair(tile, r);
    if (token == NONE) { continue; }
    let to = (token * HEADS + head) * OUT4 * 4u + col;
    for (var c = 0u; c < 4u; c++) { out[to + c] = acc[r][c]; }
  }
}`,
  };
}
