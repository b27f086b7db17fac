/** What a plan is expected to bring, and what it asks of the shards. */

import { savingDeviation } from "./doubt.ts";
import { layerTimes, placedCopies, shardIndices, type LayerTime } from "./cost.ts";
import type { StageLimits } from "./holdings.ts";
import type { Move, PlacedLayers, PlanReason, PlannerInput } from "./input.ts";
import type { Replica } from "./placement.ts";

const NO_COPIES: readonly Replica[] = [];

/** The current placement on the shards that are there, every layer of the input in it; experts may be without a copy. */
export function liveCurrent({
  current,
  layers,
  numExperts,
  shards,
}: Pick<PlannerInput, "current" | "layers" | "numExperts" | "shards">): PlacedLayers {
  const live = new Set(shards.map(({ rank }) => rank));
  return new Map(
    layers.map((layer) => {
      const replicas = current?.layers.get(layer);
      return [
        layer,
        Array.from({ length: numExperts }, (_, expert) => liveCopies(replicas?.[expert], live)),
      ];
    }),
  );
}

/** Of an expert's copies those that are there, which share what the others had. */
function liveCopies(
  all: readonly Replica[] = NO_COPIES,
  live: ReadonlySet<number>,
): readonly Replica[] {
  if (all.length === 0) return NO_COPIES;
  if (all.length === 1 && all[0].share === 1 && live.has(all[0].rank)) return all;
  const copies = all.filter(({ rank }) => live.has(rank));
  const sum = copies.reduce((total, { share }) => total + share, 0);
  return copies.map(({ rank, share }) => ({
    rank,
    share: sum > 0 ? share / sum : 1 / copies.length,
  }));
}

/** Memory and sizes as the stages of a move want them. */
export function limitsOf({
  layers,
  numExperts,
  bytes,
  shards,
  minCopies = 1,
}: PlannerInput): StageLimits {
  const indexOf = new Map(layers.map((layer, index) => [layer, index]));
  return {
    memory: new Map(
      shards
        .filter(({ draining }) => !draining)
        .map(({ rank, memoryBytes }) => [rank, memoryBytes]),
    ),
    bytes: (layer, expert) => bytes[indexOf.get(layer)! * numExperts + expert],
    minCopies,
  };
}

/** What moves load, of which seconds spread over the steps of the move budget. */
export type LoadedByMoves = Pick<PlanReason, "movedBytes" | "moveSecondsPerStep">;

/** What the moves load. */
export function loadedBy(input: PlannerInput, moves: readonly Move[]): LoadedByMoves {
  const { bytes } = limitsOf(input);
  const speeds = new Map(input.shards.map((shard) => [shard.rank, shard.loadSecondsPerByte]));
  let movedBytes = 0;
  let seconds = 0;
  for (const { kind, layer, expert, rank } of moves) {
    if (kind !== "load") continue;
    const size = bytes(layer, expert);
    movedBytes += size;
    seconds += size * speeds.get(rank)!;
  }
  return { movedBytes, moveSecondsPerStep: seconds / Math.max(1, input.moves.steps) };
}

/** Expected seconds of a step with a placement, where each expert has a copy. */
export function secondsIfComplete(placed: PlacedLayers, timesOf: TimesOf): number | undefined {
  for (const replicas of placed.values()) {
    for (const copies of replicas) if (copies.length === 0) return undefined;
  }
  return sumOfSeconds(timesOf(placed));
}

/** What is expected of the layers of a placement. */
export type TimesOf = (placed: PlacedLayers) => readonly LayerTime[];

/** As layerTimes, once for each placement. */
export function timesOfInput(input: PlannerInput): TimesOf {
  const known = new Map<PlacedLayers, readonly LayerTime[]>();
  return (placed) => {
    const times = known.get(placed) ?? layerTimes(input, placed);
    known.set(placed, times);
    return times;
  };
}

/** Of a step's layers together. */
export function sumOfSeconds(times: readonly LayerTime[]): number {
  return times.reduce((sum, { seconds }) => sum + seconds, 0);
}

/** What going from `current` to `target` by `moves` brings. */
export function whyOf(
  input: PlannerInput,
  current: PlacedLayers,
  target: PlacedLayers,
  moves: readonly Move[],
  timesOf: TimesOf,
): PlanReason {
  const after = timesOf(target);
  const secondsBefore = secondsIfComplete(current, timesOf);
  const isSure = secondsBefore === undefined || moves.length === 0;
  const held = bytesHeld(input, target);
  return {
    secondsBefore,
    secondsAfter: sumOfSeconds(after),
    savingDeviation: isSure ? 0 : savingDeviation(input, current, target),
    ...loadedBy(input, moves),
    binding: new Map(
      input.layers.map((layer, index) => [layer, input.shards[after[index].slowest].rank]),
    ),
    shards: input.shards.map(({ rank, memoryBytes }, shard) => ({
      rank,
      ...held[shard],
      memoryBytes,
      pairs: after.reduce((sum, { pairs }) => sum + pairs[shard], 0),
      seconds: after.reduce((sum, { shardSeconds }) => sum + shardSeconds[shard], 0),
    })),
  };
}

/** Copies of each shard, and their bytes [numShards]. */
export function bytesHeld(
  input: PlannerInput,
  placed: PlacedLayers,
): { readonly experts: number; readonly bytes: number }[] {
  const all = input.shards.map(() => ({ experts: 0, bytes: 0 }));
  const indexOf = shardIndices(input.shards);
  for (const [index, layer] of input.layers.entries()) {
    const { held } = placedCopies(input, indexOf, placed.get(layer));
    const first = index * input.numExperts;
    for (let shard = 0; shard < all.length; shard++) {
      const experts = held[shard];
      for (let i = 0; i < experts.length; i++) all[shard].bytes += input.bytes[first + experts[i]];
      all[shard].experts += experts.length;
    }
  }
  return all;
}
