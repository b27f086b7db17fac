import assert from "node:assert/strict";
import { test } from "node:test";

import {
  decodeRegistration,
  encodeRegistration,
  type RouterSight,
} from "../../../../core/membership.ts";
import { stepSeconds } from "../../../../core/placement/cost.ts";
import { planPlacement } from "../../../../core/placement/planner.ts";
import {
  MAX_SIGHTS,
  sightOf,
  speedForAll,
  TokenRate,
} from "../../../../router-service/cluster/planning/router-sights.ts";
import { plannerInput } from "../../../core/placement/inputs.ts";

/** What a router measured of shards 0, 1, … whose round trips it is given. */
const sightOfTrips = (tokensPerSecond: number, trips: readonly number[]): RouterSight => ({
  tokensPerSecond,
  shards: trips.map((roundTripSeconds, rank) => ({
    rank,
    roundTripSeconds,
    bytesPerSecond: 1e9,
    secondsPerPair: 1e-3,
    samples: 100,
    spread: 0.1,
  })),
});

/** The planner's input as these routers see the shards. */
const inputOf = (sights: readonly RouterSight[], numShards: number) =>
  plannerInput({
    loads: [[3, 3, 2, 2, 2, 2]],
    room: Array.from({ length: numShards }, () => 6),
    shards: Array.from({ length: numShards }, (_, rank) => {
      const speed = speedForAll(sights, rank);
      return {
        rttSeconds: speed?.roundTripSeconds ?? 0,
        secondsPerPair: speed?.secondsPerPair ?? 0,
      };
    }),
  });

test("a plan for two routers, each far from the other's shard, is better for the mean of their steps than either's own", () => {
  for (const [mine, theirs] of [
    [1, 1],
    [3, 2],
  ]) {
    // Each has a shard near and one far; a third is halfway for both.
    const sights = [
      sightOfTrips(mine, [0.001, 0.1, 0.01]),
      sightOfTrips(theirs, [0.1, 0.001, 0.01]),
    ];
    const plans = [sights, [sights[0]], [sights[1]]].map((seen) => planPlacement(inputOf(seen, 3)));
    const [together, ...own] = plans.map(({ target }) => {
      const seconds = sights.map((sight) => stepSeconds(inputOf([sight], 3), target));
      return (mine * seconds[0] + theirs * seconds[1]) / (mine + theirs);
    });
    assert.ok(
      own.every((one) => together < 0.8 * one),
      `${together} s, their own plans ${own.join()}`,
    );
  }
});

test("a shard's speed is the mean over tokens: links by their seconds per byte, routers that did not measure it aside", () => {
  const [first] = sightOfTrips(30, [0.001]).shards;
  const second = { ...first, roundTripSeconds: 0.005, bytesPerSecond: 1e8, samples: 20 };
  const sights = [
    { tokensPerSecond: 30, shards: [first] },
    { tokensPerSecond: 10, shards: [second] },
    { tokensPerSecond: 1000, shards: [{ ...first, rank: 7 }] },
  ];
  const speed = speedForAll(sights, 0) ?? assert.fail("no speed");
  assert.ok(Math.abs((speed.roundTripSeconds ?? 0) - 0.002) < 1e-12);
  assert.ok(Math.abs(1 / (speed.bytesPerSecond ?? 0) - (3e-9 + 1e-8) / 4) < 1e-20);
  assert.equal(speed.samples, 120);
  assert.equal(speedForAll(sights, 1), undefined);
  // Without any traffic all count alike; one that has none does not count beside one that has.
  const idle = (tokensPerSecond: number) => [
    { tokensPerSecond, shards: [first] },
    { tokensPerSecond: 0, shards: [second] },
  ];
  assert.equal(speedForAll(idle(0), 0)?.roundTripSeconds, 0.003);
  assert.equal(speedForAll(idle(1), 0)?.roundTripSeconds, 0.001);
  assert.equal(speedForAll(idle(1).slice(1), 0)?.roundTripSeconds, 0.005);
});

test("a router tells what it has measured, of so many shards, and its registration comes back with it", () => {
  const steady = {
    roundTripSeconds: 1.234567e-3,
    bytesPerSecond: Infinity,
    secondsPerPair: undefined,
    samples: 3,
    spread: 0,
  };
  const members = Array.from({ length: MAX_SIGHTS + 2 }, (_, rank) => ({ rank, steady }));
  members[0] = { rank: 0, steady: { ...steady, samples: 0 } };
  members[MAX_SIGHTS + 1] = { rank: MAX_SIGHTS + 1, steady: { ...steady, samples: 9 } };
  const sight = sightOf(12.34567, members);
  assert.equal(sight.shards.length, MAX_SIGHTS);
  assert.deepEqual(sight.shards[0], {
    rank: MAX_SIGHTS + 1,
    roundTripSeconds: 1.235e-3,
    samples: 9,
    spread: 0,
  });
  const router = {
    kind: "router",
    id: "r",
    incarnation: "i",
    httpAddress: "h:1",
    grpcAddress: "h:2",
    epoch: 1,
    localBytes: 0,
  } as const;
  assert.deepEqual(decodeRegistration(encodeRegistration({ ...router, sight })), {
    ...router,
    sight,
  });
  // One that says nonsense of shards is a router all the same.
  const odd = decodeRegistration(JSON.stringify({ ...router, sight: { shards: "all" } }));
  assert.equal(odd?.kind === "router" && odd.epoch, 1);
  assert.equal(odd?.kind === "router" ? odd.sight : "none", undefined);
});

test("tokens per second are those of late, however often they are looked at", () => {
  const [often, seldom] = [new TokenRate(), new TokenRate()];
  assert.equal(often.at(0, 1000), 0);
  seldom.at(0, 1000);
  let [fast, slow] = [0, 0];
  for (let i = 1; i <= 600; i++) {
    // 100 a second for five minutes, then none.
    const tokens = 1000 + 100 * Math.min(i, 300);
    fast = often.at(i - 0.9, tokens - (i <= 300 ? 90 : 0));
    fast = often.at(i, tokens);
    if (i % 10 === 0) slow = seldom.at(i, tokens);
    if (i === 300) assert.ok(Math.abs(fast - 100) < 1 && Math.abs(slow - 100) < 1);
  }
  assert.ok(fast < 4 && slow < 4, `${fast} and ${slow} per second after five minutes without`);
});
