/**
 * Decides where every expert lives. The objective is the predicted time of a step: per MoE layer that of the slowest
 * shard (dispatch and compute) and the router's part of every hop, summed over layers (cost.ts), and the loading
 * of what moves, spread over the steps that the placement is expected to stand.
 */

import { balance } from "./balance.ts";
import { layerTimes, linearCosts, loadOfLayer, type LayerTime } from "./cost.ts";
import { PlacementError } from "./errors.ts";
import type { Move, PlacedLayers, Plan, PlannerInput, ShardBalance } from "./input.ts";
import { addCopy, emptyLayer, sharesOf, type Layer } from "./layer.ts";
import { movesBetween, movesOf, stagesOf } from "./moves.ts";
import { withMinCopies } from "./min-copies.ts";
import { fillWithCopies, packMissing } from "./pack.ts";
import type { LayerReplicas } from "./placement.ts";
import { slotsOfLayers } from "./slots.ts";

export type * from "./input.ts";
export { PlacementError } from "./errors.ts";

/**
 * A placement for the load ahead, and how to get there from the current one. The same input gives the same plan.
 * Throws PlacementError where the experts do not fit the shards, or arrays have other lengths than layers × experts.
 */
export function planPlacement(input: PlannerInput): Plan {
  checkInput(input);
  const current = liveCurrent(input);
  const target = withMinCopies(placeLayers(input), input.minCopies ?? 1, limitsOf(input), current);
  const stages =
    input.current === undefined ? [target] : stagesOf(current, target, limitsOf(input));
  const moves =
    input.current === undefined ? movesBetween(current, target) : movesOf(current, stages);
  return { target, moves, stages, why: whyOf(input, current, stages.at(-1) ?? current, moves) };
}

function placeLayers(input: PlannerInput): PlacedLayers {
  const costs = linearCosts(input);
  const slots = slotsOfLayers({
    memoryBytes: input.shards.map(({ memoryBytes, draining }) => (draining ? 0 : memoryBytes)),
    expertBytes: input.layers.map((_, index) => Math.max(...bytesOfLayer(input, index))),
    numExperts: input.numExperts,
  });
  return new Map(
    input.layers.map((number, index) => {
      const layer = emptyLayer(loadOfLayer(input, index), costs);
      const left = [...slots[index]];
      holdCurrent(layer, left, input, number);
      balance(layer);
      const missing = packMissing(layer, left);
      if (missing.length > 0) throw noRoom(input, `layer ${number} expert ${missing[0]}`);
      if (input.current === undefined) fillWithCopies(layer, left);
      balance(layer);
      return [number, replicasOf(layer, input)];
    }),
  );
}

/** Copies that stay where they are: those on shards that are there and not draining, as far as there are slots. */
function holdCurrent(
  layer: Layer,
  slots: number[],
  { current, shards }: PlannerInput,
  number: number,
): void {
  for (const [expert, copies] of (current?.layers.get(number) ?? []).entries()) {
    for (const { rank } of copies) {
      const shard = shards.findIndex((one) => one.rank === rank && !one.draining);
      if (shard < 0 || slots[shard] === 0) continue;
      addCopy(layer, expert, shard);
      slots[shard]--;
    }
  }
}

function replicasOf(layer: Layer, { shards }: PlannerInput): LayerReplicas {
  return layer.holders.map((holders, expert) => {
    const shares = sharesOf(layer, expert);
    return holders
      .map((shard, i) => ({ rank: shards[shard].rank, share: shares[i] }))
      .sort((a, b) => a.rank - b.rank);
  });
}

/** The current placement on the shards that are there, every layer of the input in it; experts may be without a copy. */
function liveCurrent({ current, layers, numExperts, shards }: PlannerInput): PlacedLayers {
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

function limitsOf(input: PlannerInput): Parameters<typeof stagesOf>[2] {
  const indexOf = new Map(input.layers.map((layer, index) => [layer, index]));
  return {
    memory: new Map(
      input.shards
        .filter(({ draining }) => !draining)
        .map(({ rank, memoryBytes }) => [rank, memoryBytes]),
    ),
    bytes: (layer, expert) => input.bytes[indexOf.get(layer)! * input.numExperts + expert],
  };
}

function whyOf(
  input: PlannerInput,
  current: PlacedLayers,
  last: PlacedLayers,
  moves: readonly Move[],
): Plan["why"] {
  const { bytes } = limitsOf(input);
  const speeds = new Map(input.shards.map((shard) => [shard.rank, shard.loadSecondsPerByte]));
  const loads = moves.filter(({ kind }) => kind === "load");
  const times = layerTimes(input, last);
  const complete = [...current.values()].every((replicas) =>
    replicas.every((copies) => copies.length > 0),
  );
  return {
    secondsBefore: complete ? sumOf(layerTimes(input, current)) : undefined,
    secondsAfter: sumOf(times),
    moveSecondsPerStep:
      loads.reduce(
        (sum, { layer, expert, rank }) => sum + bytes(layer, expert) * speeds.get(rank)!,
        0,
      ) / Math.max(1, input.moves.steps),
    movedBytes: loads.reduce((sum, { layer, expert }) => sum + bytes(layer, expert), 0),
    binding: new Map(
      input.layers.map((layer, index) => [layer, input.shards[times[index].slowest].rank]),
    ),
    shards: balanceOf(input, last, times),
  };
}

function balanceOf(
  input: PlannerInput,
  placed: PlacedLayers,
  times: readonly LayerTime[],
): ShardBalance[] {
  const { bytes } = limitsOf(input);
  const held = new Map(input.shards.map(({ rank }) => [rank, { experts: 0, bytes: 0 }]));
  for (const [layer, replicas] of placed) {
    for (const [expert, copies] of replicas.entries()) {
      for (const { rank } of copies) {
        const shard = held.get(rank)!;
        shard.experts++;
        shard.bytes += bytes(layer, expert);
      }
    }
  }
  return input.shards.map(({ rank, memoryBytes }, shard) => ({
    rank,
    ...held.get(rank)!,
    memoryBytes,
    pairs: times.reduce((sum, { pairs }) => sum + pairs[shard], 0),
    seconds: times.reduce((sum, { shardSeconds }) => sum + shardSeconds[shard], 0),
  }));
}

function sumOf(times: readonly LayerTime[]): number {
  return times.reduce((sum, { seconds }) => sum + seconds, 0);
}

function bytesOfLayer({ bytes, numExperts }: PlannerInput, index: number): Float64Array {
  return bytes.subarray(index * numExperts, (index + 1) * numExperts);
}

function noRoom({ layers, numExperts, bytes, shards }: PlannerInput, what: string): PlacementError {
  const needed = bytes.reduce((sum, one) => sum + one, 0);
  const offered = shards.filter(({ draining }) => !draining).map(({ memoryBytes }) => memoryBytes);
  return new PlacementError(
    `${layers.length} layers of ${numExperts} experts take ${needed} bytes; ` +
      `${offered.length} shards offer ${offered.join(" + ") || 0} bytes, which leaves no room for ${what}`,
  );
}

function checkInput(input: PlannerInput): void {
  const cells = input.layers.length * input.numExperts;
  for (const name of ["load", "bytes", "uncertainty"] as const) {
    const length = input[name]?.length ?? cells;
    if (length !== cells) {
      throw new PlacementError(
        `${name} has ${length} values, ${input.layers.length} layers of ${input.numExperts} experts have ${cells}`,
      );
    }
  }
  const ranks = new Set(input.shards.map(({ rank }) => rank));
  if (ranks.size !== input.shards.length) throw new PlacementError("two shards have the same rank");
}
