/** What changing a layer's copies costs, beside the placement that it has now. */

import type { Change } from "./propose.ts";

/** Costs of loading, and how much may still be loaded. */
export interface MoveCosts {
  /** Shards that hold each expert now; undefined where nothing is held yet and loading costs nothing. */
  readonly current: readonly (readonly number[])[] | undefined;
  readonly sizes: Float64Array;
  /** Seconds of loading a byte onto each shard, spread over the steps that the placement is to stand [numShards]. */
  readonly secondsPerByte: Float64Array;
  /** Bytes that may be loaded beside what is; of all layers together. */
  left: number;
}

/** Loading that a change brings beyond what was to be loaded before it; less than 0 where it takes loads back. */
export function costOfMoves(
  { current, sizes, secondsPerByte }: MoveCosts,
  { add, remove }: Change,
): { readonly seconds: number; readonly bytes: number } {
  let seconds = 0;
  let bytes = 0;
  if (current === undefined) return { seconds, bytes };
  for (const { expert, shard } of add) {
    if (current[expert].includes(shard)) continue;
    bytes += sizes[expert];
    seconds += sizes[expert] * secondsPerByte[shard];
  }
  for (const { expert, shard } of remove) {
    if (current[expert].includes(shard)) continue;
    bytes -= sizes[expert];
    seconds -= sizes[expert] * secondsPerByte[shard];
  }
  return { seconds, bytes };
}
