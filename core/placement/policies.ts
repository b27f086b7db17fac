/** Where experts live by the policies that ours is compared with, and that an operator may ask for. */

import { countText, offersText } from "../amounts.ts";
import { eplb } from "./eplb.ts";
import { PlacementError } from "./errors.ts";
import type { PlacedLayers, PlannedShard, PlannerInput, Policy } from "./input.ts";
import type { LayerReplicas } from "./placement.ts";

/** What such a policy goes by. */
type PolicyInput = Pick<PlannerInput, "layers" | "numExperts" | "bytes" | "load" | "shards">;

/** Where a policy other than ours wants the experts. Throws PlacementError where they do not fit the shards as it counts. */
export function targetOf(policy: Exclude<Policy, "auto">, input: PolicyInput): PlacedLayers {
  const shards = input.shards
    .filter(({ draining }) => !draining)
    .toSorted((a, b) => a.rank - b.rank);
  const slots = slotsPerShard(input, shards);
  if (slots * shards.length < input.numExperts) {
    throw noSlots(input, shards, slots, policy);
  }
  const place = policy === "static" ? inTurns : byEplb;
  return new Map(
    input.layers.map((layer, index) => {
      const { numExperts } = input;
      const load = input.load.subarray(index * numExperts, (index + 1) * numExperts);
      return [layer, place(load, slots, shards)];
    }),
  );
}

function noSlots(
  { numExperts }: PolicyInput,
  shards: readonly PlannedShard[],
  slots: number,
  policy: Policy,
): PlacementError {
  const smallest = Math.min(...shards.map(({ memoryBytes }) => memoryBytes));
  const offer =
    shards.length === 0
      ? "no shard is there"
      : `${countText(shards.length, "shard has", "shards have")} ${countText(slots, "slot")} each, as the smallest offers ${offersText([smallest])}`;
  return new PlacementError(
    `${countText(numExperts, "expert")} per layer; with --placement-policy ${policy} ${offer}`,
  );
}

/** Experts of every layer that each shard has memory for. */
function slotsPerShard(
  { bytes, numExperts }: PolicyInput,
  shards: readonly PlannedShard[],
): number {
  let bytesPerSlot = 0;
  for (let from = 0; from < bytes.length; from += numExperts) {
    bytesPerSlot += Math.max(...bytes.subarray(from, from + numExperts));
  }
  const memory = shards.map(({ memoryBytes }) => memoryBytes);
  return Math.min(numExperts, Math.floor(Math.min(...memory) / bytesPerSlot));
}

function inTurns(
  load: Float64Array,
  _slots: number,
  shards: readonly PlannedShard[],
): LayerReplicas {
  return Array.from(load, (_, expert) => [{ rank: shards[expert % shards.length].rank, share: 1 }]);
}

function byEplb(load: Float64Array, slots: number, shards: readonly PlannedShard[]): LayerReplicas {
  const { experts, copies } = eplb(load, slots * shards.length, shards.length);
  const shares = Array.from(load, () => new Map<number, number>());
  for (const [device, held] of experts.entries()) {
    const { rank } = shards[device];
    for (const expert of held) {
      // Two copies on one device are one that takes both their shares.
      shares[expert].set(rank, (shares[expert].get(rank) ?? 0) + 1 / copies[expert]);
    }
  }
  return shares.map((byRank) =>
    [...byRank].map(([rank, share]) => ({ rank, share })).sort((a, b) => a.rank - b.rank),
  );
}
