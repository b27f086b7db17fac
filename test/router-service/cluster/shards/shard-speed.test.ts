import assert from "node:assert/strict";
import { test } from "node:test";

import { ShardSpeed } from "../../../../router-service/cluster/shards/shard-speed.ts";

const answer = (secondsPerPair: number, pairs = 10) => ({
  bytes: 1000,
  pairs,
  seconds: 1e-3 + pairs * secondsPerPair,
  queueSeconds: 0,
  computeSeconds: pairs * secondsPerPair,
});

const near = (actual: number | undefined, expected: number) =>
  assert.ok(Math.abs(actual! / expected - 1) < 1e-6, `${actual} is not ${expected}`);

test("the first answers of a shard are no measure of it, and serve to expect the next", () => {
  const speed = new ShardSpeed();
  for (let n = 0; n < 4; n++) speed.observe(answer(0.5), n);
  assert.equal(speed.measured.secondsPerPair, undefined);
  assert.equal(speed.measured.roundTripSeconds, undefined);
  near(speed.expectedSeconds(1000, 10), 5.001);
  for (let n = 0; n < 3; n++) speed.observe(answer(0.01), n);
  near(speed.measured.secondsPerPair, 0.01);
  near(speed.measured.roundTripSeconds, 1e-3);
  assert.equal(speed.measured.samples, 3);
});
