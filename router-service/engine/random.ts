/** Random numbers of a generation: a function of its seed and the token's index, whatever ran beside it. */

const MASK = 0xffff_ffff_ffff_ffffn;

/** A number in [0, 1) with 53 random bits: the `index`-th of the stream that `seed` names, by SplitMix64. */
export function uniformAt(seed: number, index: number): number {
  // The seed is mixed on its own first, so that the streams of neighbouring seeds do not overlap.
  const stream = mix(BigInt.asUintN(64, BigInt(Math.trunc(seed))));
  const bits = mix((stream + 0x9e3779b97f4a7c15n * BigInt(index + 1)) & MASK);
  return Number(bits >> 11n) / 2 ** 53;
}

/** The finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
function mix(value: bigint): bigint {
  let z = value;
  z = ((z ^ (z >> 30n)) * 0xbf58476d1ce4e5b9n) & MASK;
  z = ((z ^ (z >> 27n)) * 0x94d049bb133111ebn) & MASK;
  return z ^ (z >> 31n);
}
