import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";

export interface RopeCacheOptions {
  readonly numHeads: number;
  readonly numKvHeads: number;
  /** Columns of a head; even. */
  readonly headDim: number;
  /** RMSNorm of q and k: none, over each head, or over the whole projection. */
  readonly norm: "none" | "head" | "whole";
  readonly eps: number;
  /** q, k and v are clamped to ±clip after the norms. */
  readonly clip?: number;
  /** Pairs are (2i, 2i+1) instead of (i, i + headDim/2). */
  readonly interleaved: boolean;
}

/** Columns whose mean square a head is divided by: first one and number, and where the scales of its columns are. */
const NORM = {
  none: { binding: "", first: "0u", width: "0u", scale: "1.0" },
  head: {
    binding: "@group(0) @binding(7) var<storage, read> scales: array<f32>; // [2, headDim]",
    first: "head * D",
    width: "D",
    scale: "scales[select(0u, D, head >= HEADS) + i]",
  },
  whole: {
    binding:
      "@group(0) @binding(7) var<storage, read> scales: array<f32>; // [(numHeads + numKvHeads)·headDim]",
    first: "select(0u, HEADS * D, head >= HEADS)",
    width: "select(HEADS * D, KV_HEADS * D, head >= HEADS)",
    scale: "scales[head * D + i]",
  },
} as const;

const PAIR = {
  halves: { first: "i", second: "i + D / 2u" },
  interleaved: { first: "2u * i", second: "2u * i + 1u" },
} as const;

const LANES = 32;

/**
 * Norms, clipping and rotary positions of projected queries and keys; keys and values are written into the paged cache.
 *
 * 0 counts; 1 projected f32 [numTokens, (numHeads + 2·numKvHeads)·headDim], q before k before v;
 * 2 rope f32 [maxPositions, headDim/2, 2] (cos, sin); 3 positions u32 [numTokens]; 4 cacheSlots u32 [numTokens];
 * 5 q f32 [numTokens, numHeads·headDim]; 6 cache f32 [numSlots, 2, numKvHeads·headDim], k before v;
 * 7 scales f32 of q, then of k: [2, headDim] (head) or [(numHeads + numKvHeads)·headDim] (whole)
 * A workgroup works on one head of one token.
 */
export function ropeCache(options: RopeCacheOptions): Kernel<StepSizes> {
  const { numHeads, numKvHeads, headDim, eps, clip = 3e38 } = options;
  const norm = NORM[options.norm];
  const pair = PAIR[options.interleaved ? "interleaved" : "halves"];
  return {
    label: `rope-cache ${options.norm}`,
    grid: (sizes) => [numHeads + 2 * numKvHeads, sizes.tokens, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const HEADS = ${numHeads}u;
const KV_HEADS = ${numKvHeads}u;
const D = ${headDim}u;
const CLIP = ${clip.toExponential()};
@group(0) @binding(1) var<storage, read> projected: array<f32>;
@group(0) @binding(2) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> positions: array<u32>;
@group(0) @binding(4) var<storage, read> cache_slots: array<u32>;
@group(0) @binding(5) var<storage, read_write> q: array<f32>;
@group(0) @binding(6) var<storage, read_write> cache: array<f32>;
${norm.binding}
var<workgroup> squares: array<f32, LANES>;

fn scale_of(head: u32, i: u32) -> f32 { return ${norm.scale}; }

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let head = group.x;
  let token = group.y;
  let row = token * (HEADS + 2u * KV_HEADS) * D;
  let to = cache_slots[token] * 2u * KV_HEADS * D + (head - min(head, HEADS)) * D;
  if (head >= HEADS + KV_HEADS) {
    for (var i = lane; i < D; i += LANES) { cache[to + i] = clamp(projected[row + head * D + i], -CLIP, CLIP); }
    return;
  }
  let width = ${norm.width};
  var sum = 0.0;
  for (var i = lane; i < width; i += LANES) {
    let v = projected[row + ${norm.first} + i];
    sum += v * v;
  }
  squares[lane] = sum;
  workgroupBarrier();
  var all = 0.0;
  for (var l = 0u; l < LANES + counts.zero; l++) { all += squares[l]; }
  let factor = select(1.0, inverseSqrt(all / f32(width) + ${eps.toExponential()}), width > 0u);
  for (var i = lane; i < D / 2u; i += LANES) {
    let first = ${pair.first};
    let second = ${pair.second};
    let a = clamp(projected[row + head * D + first] * factor * scale_of(head, first), -CLIP, CLIP);
    let b = clamp(projected[row + head * D + second] * factor * scale_of(head, second), -CLIP, CLIP);
    let turn = rope[positions[token] * (D / 2u) + i];
    let turned = vec2<f32>(a * turn.x - b * turn.y, b * turn.x + a * turn.y);
    if (head < HEADS) {
      let at = (token * HEADS + head) * D;
      q[at + first] = turned.x;
      q[at + second] = turned.y;
    } else {
      cache[to + first] = turned.x;
      cache[to + second] = turned.y;
    }
  }
}`,
  };
}
