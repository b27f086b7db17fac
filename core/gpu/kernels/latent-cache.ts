import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";

export interface LatentCacheOptions {
  /** Columns of the latent vector. */
  readonly rank: number;
  /** Columns of the key that positions turn; even. */
  readonly ropeDim: number;
  /** Columns of a projected row, and the first one of the latent vector; the key stands behind it. */
  readonly rowWidth: number;
  readonly firstColumn: number;
  readonly eps: number;
  /** Pairs are (2i, 2i+1) instead of (i, i + ropeDim/2). */
  readonly interleaved: boolean;
}

const PAIR = {
  halves: { first: "i", second: "i + ROPE / 2u" },
  interleaved: { first: "2u * i", second: "2u * i + 1u" },
} as const;

const LANES = 32;

/**
 * The cache rows of latent attention: the latent vector after its RMSNorm, and the key of all heads, turned.
 *
 * 0 counts; 1 projected f32 [numTokens, rowWidth]; 2 scale f32 [rank]; 3 rope f32 [maxPositions, ropeDim/2, 2] (cos, sin);
 * 4 positions u32 [numTokens]; 5 cacheSlots u32 [numTokens]; 6 cache f32 [numSlots, rank + ropeDim]
 * A workgroup works on one token.
 */
export function latentCache(options: LatentCacheOptions): Kernel<StepSizes> {
  const { rank, ropeDim, rowWidth, firstColumn, eps } = options;
  const pair = PAIR[options.interleaved ? "interleaved" : "halves"];
  return {
    label: `latent-cache ${rank}+${ropeDim}`,
    grid: (sizes) => [sizes.tokens, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${LANES}u;
const RANK = ${rank}u;
const ROPE = ${ropeDim}u;
@group(0) @binding(1) var<storage, read> projected: array<f32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read> rope: array<vec2<f32>>;
@group(0) @binding(4) var<storage, read> positions: array<u32>;
@group(0) @binding(5) var<storage, read> cache_slots: array<u32>;
@group(0) @binding(6) var<storage, read_write> cache: array<f32>;
var<workgroup> squares: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let token = group.x;
  let latent = token * ${rowWidth}u + ${firstColumn}u;
  let key = latent + RANK;
  let to = cache_slots[token] * (RANK + ROPE);
  var sum = 0.0;
  for (var i = lane; i < RANK; i += LANES) {
    let v = projected[latent + i];
    sum += v * v;
  }
  squares[lane] = sum;
  workgroupBarrier();
  var all = 0.0;
  for (var l = 0u; l < LANES + counts.zero; l++) { all += squares[l]; }
  let factor = inverseSqrt(all / ${rank}.0 + ${eps.toExponential()});
  for (var i = lane; i < RANK; i += LANES) { cache[to + i] = projected[latent + i] * factor * scale[i]; }
  for (var i = lane; i < ROPE / 2u; i += LANES) {
    let first = ${pair.first};
    let second = ${pair.second};
    let a = projected[key + first];
    let b = projected[key + second];
    let turn = rope[positions[token] * (ROPE / 2u) + i];
    cache[to + RANK + first] = a * turn.x - b * turn.y;
    cache[to + RANK + second] = b * turn.x + a * turn.y;
  }
}`,
  };
}
