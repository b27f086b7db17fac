import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";

export interface TurnHeadsOptions {
  readonly numHeads: number;
  /** Columns of a head that are turned; even. */
  readonly dim: number;
  /** Pairs are (2i, 2i+1) instead of (i, i + dim/2). */
  readonly interleaved: boolean;
  /** Of the input, in columns: where a head's turned columns begin, from one head to the next, and from one token to the next. */
  readonly first: number;
  readonly headStride: number;
  readonly tokenStride: number;
  /** Of the result, likewise; from one token to the next it is numHeads heads. */
  readonly outFirst: number;
  readonly outStride: number;
}

const WORKGROUP = 64;

/** WGSL of a pair's columns. */
const PAIR = {
  halves: "vec2<u32>(i, i + HALF)",
  interleaved: "vec2<u32>(2u * i, 2u * i + 1u)",
} as const;

/**
 * Rotary positions on some columns of each head, which are copied with it.
 *
 * 0 counts; 1 x f32 [numTokens, tokenStride] of heads [headStride]; 2 rope f32 [maxPositions, dim/2, 2] (cos, sin);
 * 3 positions u32 [numTokens]; 4 out f32 [numTokens, numHeads, outStride]
 * An invocation turns one pair.
 */
export function turnHeads(options: TurnHeadsOptions): Kernel<StepSizes> {
  const { numHeads, dim, interleaved, first, headStride, tokenStride, outFirst, outStride } =
    options;
  return {
    label: `turn-heads ${numHeads}×${dim}`,
    grid: (sizes) => [ceilDiv((numHeads * dim) / 2, WORKGROUP), sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const HEADS = ${numHeads}u;
const HALF = ${dim / 2}u;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  let head = id.x / HALF;
  let i = id.x % HALF;
  let token = id.y;
  if (head >= HEADS) { return; }
  let begin = token * ${tokenStride}u + head * ${headStride}u + ${first}u;
  let to = (token * HEADS + head) * ${outStride}u + ${outFirst}u;
  let pair = ${PAIR[interleaved ? "interleaved" : "halves"]};
  let a = x[begin + pair.x];
  let b = x[begin + pair.y];
  let angle = rope[positions[token] * HALF + i];
  out[to + pair.x] = a * angle.x - b * angle.y;
  out[to + pair.y] = b * angle.x + a * angle.y;
}`,
  };
}
