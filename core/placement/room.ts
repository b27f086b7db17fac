/** How much of every shard's memory a layer may use. */

/** A layer and those after it. */
export interface RoomInput {
  /** Free bytes of each shard, for this layer and those after it [numShards]. */
  readonly left: ArrayLike<number>;
  /** Bytes of each of the layer's experts [numExperts]. */
  readonly sizes: Float64Array;
  /** Bytes of this layer's experts and of all layers' after it. */
  readonly bytesAhead: number;
}

/**
 * Bytes that the layer may take of each shard [numShards]: in proportion to the bytes of its experts. Where all of them
 * are of one size it is whole experts, those that do not divide going to the shards with the largest remainders:
 * layers take turns in having one more, and all of them end up with as many over all shards, or one apart.
 */
export function roomOfLayer({ left, sizes, bytesAhead }: RoomInput): Float64Array {
  const [size] = sizes;
  const bytes = sizes.reduce((sum, one) => sum + one, 0);
  const exact = Float64Array.from(left, (free) => Math.max(0, free * (bytes / bytesAhead)));
  if (sizes.some((one) => one !== size)) return exact;
  const experts = exact.map((free) => Math.min(sizes.length, free / size));
  // What rounding took from a whole number is given back: 26 · 8 experts are 8 per layer, not 7.999.
  const whole = experts.map((count) => Math.floor(count + 1e-9));
  let more =
    Math.floor(experts.reduce((sum, count) => sum + count, 0) + 1e-6) -
    whole.reduce((sum, count) => sum + count, 0);
  const byRemainder = [...experts.keys()].sort(
    (a, b) => experts[b] - whole[b] - (experts[a] - whole[a]) || a - b,
  );
  for (const shard of byRemainder) {
    if (more <= 0) break;
    if (whole[shard] >= sizes.length || (whole[shard] + 1) * size > left[shard]) continue;
    whole[shard]++;
    more--;
  }
  return whole.map((count) => count * size);
}
