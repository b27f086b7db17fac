import assert from "node:assert/strict";
import { test } from "node:test";

import { stepSeconds } from "../../../core/placement/cost.ts";
import { PlacementError } from "../../../core/placement/errors.ts";
import type { PlacedLayers } from "../../../core/placement/planner.ts";
import { targetOf } from "../../../core/placement/policies.ts";
import { plannerInput } from "./inputs.ts";

const loads = [[600, 560, 120, 120, 20, 10, 10, 10]];

/** The experts of layer 0 that a rank holds, ascending. */
function expertsOn(rank: number, layers: PlacedLayers): number[] {
  return (layers.get(0) ?? []).flatMap((copies, expert) =>
    copies.some((copy) => copy.rank === rank) ? [expert] : [],
  );
}

test("static: the shards take the experts in turns, one copy each, and those that are to leave take none", () => {
  const input = plannerInput({
    loads,
    room: [8, 8, 8],
    shards: [{}, { draining: true }, { rank: 5 }],
  });
  const layers = targetOf("static", input);
  assert.deepEqual(expertsOn(0, layers), [0, 2, 4, 6]);
  assert.deepEqual(expertsOn(5, layers), [1, 3, 5, 7]);
});

test("eplb: as many slots on each shard as the smallest has room for, copies with even shares, none twice on a shard", () => {
  const input = plannerInput({ loads, room: [3, 4, 9, 3] });
  const layers = targetOf("eplb", input);
  for (const rank of [0, 1, 2, 3]) {
    const held = expertsOn(rank, layers);
    assert.ok(held.length <= 3, `rank ${rank}: ${held.join()}`);
  }
  const copies = layers.get(0) ?? [];
  for (const expert of copies) {
    assert.equal(new Set(expert.map(({ rank }) => rank)).size, expert.length);
    const sum = expert.reduce((total, { share }) => total + share, 0);
    assert.ok(Math.abs(sum - 1) < 1e-12);
  }
  assert.ok(copies[0].length > 1, "the most loaded expert has copies");
});

test("with a policy other than ours, a step is expected to take what copies with their shares take, not the best split", () => {
  const half = [0, 1].map((rank) => ({ rank, share: 0.5 }));
  const placed: PlacedLayers = new Map([[0, [half, half]]]);
  // Shard 1 takes three times as long for a pair.
  const shards = [{}, { secondsPerPair: 3 }];
  const seconds = (policy: "auto" | "eplb") =>
    stepSeconds(
      plannerInput({ loads: [[20, 20]], room: [2, 2], shards, policy, steps: [] }),
      placed,
    );
  assert.ok(Math.abs(seconds("eplb") - 60) < 1e-9, `${seconds("eplb")}`);
  assert.ok(Math.abs(seconds("auto") - 30) < 1e-3, `${seconds("auto")}`);
  const lost = plannerInput({ loads: [[20, 20]], room: [2], policy: "eplb", steps: [] });
  assert.ok(Math.abs(stepSeconds(lost, placed) - 40) < 1e-9);
});

test("experts that do not fit even slots are refused with the numbers", () => {
  const input = plannerInput({ loads, room: [1, 100] });
  assert.throws(
    () => targetOf("eplb", input),
    (error) =>
      error instanceof PlacementError &&
      /8 experts.*2 shards have 1 slot each, as the smallest offers 1\d* bytes/.test(error.message),
  );
});
