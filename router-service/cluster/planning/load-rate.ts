/** How fast shards get experts onto their devices, as moves have shown; decides nothing. */

import type { PlacedLayers } from "../../../core/placement/planner.ts";

/** Moves of fewer bytes on the busiest shard say more of the messages than of the loading. */
const LEAST_BYTES = 256 * 1024;

/** Weight of the newest move. */
const NEWEST = 0.5;

/** A moving average over moves. */
export class LoadRate {
  #bytesPerSecond: number | undefined;

  /** Of one shard; undefined before the first move that says something. */
  get bytesPerSecond(): number | undefined {
    return this.#bytesPerSecond;
  }

  /** Takes note of a move that took `seconds`: as long as the shard that had most to load. */
  observe(
    before: PlacedLayers,
    after: PlacedLayers,
    seconds: number,
    bytesOf: (layer: number, expert: number) => number,
  ): void {
    const loaded = new Map<number, number>();
    for (const [layer, replicas] of after) {
      for (const [expert, copies] of replicas.entries()) {
        const there = before.get(layer)?.[expert] ?? [];
        for (const { rank } of copies) {
          if (there.some((copy) => copy.rank === rank)) continue;
          loaded.set(rank, (loaded.get(rank) ?? 0) + bytesOf(layer, expert));
        }
      }
    }
    const most = Math.max(0, ...loaded.values());
    if (most < LEAST_BYTES || seconds <= 0) return;
    const rate = most / seconds;
    this.#bytesPerSecond ??= rate;
    this.#bytesPerSecond += (rate - this.#bytesPerSecond) * NEWEST;
  }
}
