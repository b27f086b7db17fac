/** What a plan is expected to bring, and what it asks of the shards. */

import { savingDeviation } from "./doubt.ts";
import { layerTimes, stepSeconds } from "./cost.ts";
import type { StageLimits } from "./holdings.ts";
import type { Move, PlacedLayers, PlanReason, PlannerInput } from "./input.ts";
import { movesBetween } from "./moves.ts";
import type { Replica } from "./placement.ts";

/** The current placement on the shards that are there, every layer of the input in it; experts may be without a copy. */
export function liveCurrent({ current, layers, numExperts, shards }: PlannerInput): PlacedLayers {
  const live = new Set(shards.map(({ rank }) => rank));
  const areLive = ({ rank }: Replica) => live.has(rank);
  return new Map(
    layers.map((layer) => {
      const replicas = current?.layers.get(layer);
      return [
        layer,
        Array.from({ length: numExperts }, (_, expert) => {
          const all = replicas?.[expert] ?? [];
          if (all.length === 1 && all[0].share === 1 && areLive(all[0])) return all;
          const copies = all.filter(areLive);
          const sum = copies.reduce((total, { share }) => total + share, 0);
          return copies.map(({ rank, share }) => ({
            rank,
            share: sum > 0 ? share / sum : 1 / copies.length,
          }));
        }),
      ];
    }),
  );
}

/** Memory and sizes as the stages of a move want them. */
export function limitsOf({ layers, numExperts, bytes, shards }: PlannerInput): StageLimits {
  const indexOf = new Map(layers.map((layer, index) => [layer, index]));
  return {
    memory: new Map(
      shards
        .filter(({ draining }) => !draining)
        .map(({ rank, memoryBytes }) => [rank, memoryBytes]),
    ),
    bytes: (layer, expert) => bytes[indexOf.get(layer)! * numExperts + expert],
  };
}

/** Bytes that are in the target and not held now. */
export function loadedBytes(input: PlannerInput, target: PlacedLayers): number {
  const { bytes } = limitsOf(input);
  return loadsOf(movesBetween(liveCurrent(input), target)).reduce(
    (sum, { layer, expert }) => sum + bytes(layer, expert),
    0,
  );
}

/** Loading of what is in the target and not held now, spread over the steps of the move budget. */
export function moveSeconds(input: PlannerInput, target: PlacedLayers): number {
  return secondsOfLoads(input, movesBetween(liveCurrent(input), target));
}

function secondsOfLoads(input: PlannerInput, moves: readonly Move[]): number {
  const { bytes } = limitsOf(input);
  const speeds = new Map(input.shards.map((shard) => [shard.rank, shard.loadSecondsPerByte]));
  const seconds = loadsOf(moves).reduce(
    (sum, { layer, expert, rank }) => sum + bytes(layer, expert) * speeds.get(rank)!,
    0,
  );
  return seconds / Math.max(1, input.moves.steps);
}

function loadsOf(moves: readonly Move[]): Move[] {
  return moves.filter(({ kind }) => kind === "load");
}

/** What going from `current` to `target` by `moves` brings. */
export function whyOf(
  input: PlannerInput,
  current: PlacedLayers,
  target: PlacedLayers,
  moves: readonly Move[],
): PlanReason {
  const { bytes } = limitsOf(input);
  const complete = [...current.values()].every((replicas) =>
    replicas.every((copies) => copies.length > 0),
  );
  const after = layerTimes(input, target);
  const secondsAfter = after.reduce((sum, { seconds }) => sum + seconds, 0);
  const held = bytesHeld(input, target);
  return {
    secondsBefore: complete ? secondsBefore() : undefined,
    secondsAfter,
    savingDeviation: complete && moves.length > 0 ? savingDeviation(input, current, target) : 0,
    moveSecondsPerStep: secondsOfLoads(input, moves),
    movedBytes: loadsOf(moves).reduce((sum, { layer, expert }) => sum + bytes(layer, expert), 0),
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

  function secondsBefore(): number {
    return target === current ? secondsAfter : stepSeconds(input, current);
  }
}

/** Copies of each shard, and their bytes [numShards]. */
function bytesHeld(
  input: PlannerInput,
  placed: PlacedLayers,
): { readonly experts: number; readonly bytes: number }[] {
  const held = input.shards.map(() => ({ experts: 0, bytes: 0 }));
  let cell = 0;
  const byRank = new Map(input.shards.map(({ rank }, shard) => [rank, held[shard]]));
  for (const layer of input.layers) {
    const replicas = placed.get(layer);
    for (let expert = 0; expert < input.numExperts; expert++, cell++) {
      for (const { rank } of replicas?.[expert] ?? []) {
        const shard = byRank.get(rank);
        if (shard === undefined) continue;
        shard.experts++;
        shard.bytes += input.bytes[cell];
      }
    }
  }
  return held;
}
