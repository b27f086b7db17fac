import assert from "node:assert/strict";
import { test } from "node:test";

import { ShardSpeed, steadySecondsPerPair } from "../../../router-service/cluster/shard-speed.ts";

const answer = (secondsPerPair: number, pairs = 10) => ({
  bytes: 1000,
  pairs,
  seconds: 1e-3 + pairs * secondsPerPair,
  queueSeconds: 0,
  computeSeconds: pairs * secondsPerPair,
});

const known = (
  secondsPerPair: number | undefined,
  samples: number,
  pairsPerSecond: number,
): Parameters<typeof steadySecondsPerPair>[0][number] => ({
  measured: { secondsPerPair, samples },
  pairsPerSecond,
});

const near = (actual: number | undefined, expected: number) =>
  assert.ok(Math.abs(actual! / expected - 1) < 1e-6, `${actual} is not ${expected}`);

test("the first answers of a shard are no measure of it, and serve to expect the next", () => {
  const speed = new ShardSpeed();
  for (let n = 0; n < 4; n++) speed.observe(answer(0.5));
  assert.equal(speed.measured.secondsPerPair, undefined);
  assert.equal(speed.measured.roundTripSeconds, undefined);
  near(speed.expectedSeconds(1000, 10), 5.001);
  for (let n = 0; n < 3; n++) speed.observe(answer(0.01));
  near(speed.measured.secondsPerPair, 0.01);
  near(speed.measured.roundTripSeconds, 1e-3);
  assert.equal(speed.measured.samples, 3);
});

test("a few slow answers do not move a shard far from what it declares, many do", () => {
  const others = [known(0.01, 1e4, 100), known(0.01, 1e4, 100)];
  const [, , few] = steadySecondsPerPair([...others, known(0.1, 4, 100)]);
  const [, , many] = steadySecondsPerPair([...others, known(0.1, 1e4, 100)]);
  assert.ok(few! < 0.013, `${few}`);
  assert.ok(many! > 0.098, `${many}`);
});

test("what all shards take more than they declare is expected of one that was not measured", () => {
  const shards = [known(0.03, 1e6, 100), known(0.06, 1e6, 50), known(undefined, 0, 200)];
  const [first, second, third] = steadySecondsPerPair(shards);
  assert.ok(Math.abs(first! / 0.03 - 1) < 1e-3 && Math.abs(second! / 0.06 - 1) < 1e-3);
  near(third, 0.015);
});

test("shards that declare nothing count as measured, and those of which nothing is known stay unknown", () => {
  assert.deepEqual(steadySecondsPerPair([known(0.2, 1, 0), known(undefined, 0, 0)]), [
    0.2,
    undefined,
  ]);
  near(steadySecondsPerPair([known(undefined, 0, 50)])[0], 0.02);
});
