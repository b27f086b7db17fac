/** What a plan is expected to bring, and what it asks of the shards. */

import { balance } from "./balance.ts";
import { heldLayer, holdersIn } from "./cost.ts";
import type { Move, PlacedLayers, PlanReason, PlannerInput } from "./input.ts";
import type { Layer } from "./layer.ts";
import { movesBetween, type StageLimits } from "./moves.ts";
import { pairsOn, scoreOf } from "./objective.ts";

/** The current placement on the shards that are there, every layer of the input in it; experts may be without a copy. */
export function liveCurrent({ current, layers, numExperts, shards }: PlannerInput): PlacedLayers {
  const live = new Set(shards.map(({ rank }) => rank));
  return new Map(
    layers.map((layer) => {
      const replicas = current?.layers.get(layer);
      return [
        layer,
        Array.from({ length: numExperts }, (_, expert) => {
          const copies = (replicas?.[expert] ?? []).filter(({ rank }) => live.has(rank));
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
  const after = layersOf(input, target);
  return {
    secondsBefore: complete ? sumOf(layersOf(input, current)) : undefined,
    secondsAfter: sumOf(after),
    moveSecondsPerStep: secondsOfLoads(input, moves),
    movedBytes: loadsOf(moves).reduce((sum, { layer, expert }) => sum + bytes(layer, expert), 0),
    binding: new Map(
      input.layers.map((layer, index) => [layer, input.shards[slowestOf(after[index])].rank]),
    ),
    shards: input.shards.map(({ rank, memoryBytes }, shard) => {
      const held = after.map((layer) => layer.held[shard]);
      return {
        rank,
        experts: held.reduce((sum, experts) => sum + experts.length, 0),
        bytes: held.reduce(
          (sum, experts, index) =>
            experts.reduce((total, expert) => total + bytes(input.layers[index], expert), sum),
          0,
        ),
        memoryBytes,
        pairs: after.reduce((sum, layer) => sum + pairsOn(layer, shard), 0),
        seconds: after.reduce((sum, layer) => sum + layer.seconds[0][shard], 0),
      };
    }),
  };
}

function layersOf(input: PlannerInput, placed: PlacedLayers): Layer[] {
  return input.layers.map((number, index) => {
    const layer = heldLayer(input, index, holdersIn(input, placed.get(number)));
    balance(layer);
    return layer;
  });
}

function sumOf(layers: readonly Layer[]): number {
  return layers.reduce((sum, layer) => sum + scoreOf(layer), 0);
}

function slowestOf({ seconds: [seconds] }: Layer): number {
  return seconds.indexOf(Math.max(...seconds));
}
