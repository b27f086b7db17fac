import assert from "node:assert/strict";
import { test } from "node:test";

import { seededRandom } from "../../../../core/random.ts";
import {
  SteadySpeedMeter,
  steadySecondsPerPair,
} from "../../../../router-service/cluster/shards/steady-speed.ts";

const known = (
  secondsPerPair: number | undefined,
  samples: number,
  pairsPerSecond: number,
): Parameters<typeof steadySecondsPerPair>[0][number] => ({
  measured: { secondsPerPair, samples },
  pairsPerSecond,
});

const near = (actual: number | undefined, expected: number, within = 1e-6) =>
  assert.ok(Math.abs(actual! / expected - 1) < within, `${actual} is not ${expected}`);

/** Answers of dispatches of 1 to 4 pairs, 20 in a second for `seconds` from `from` on. */
function feed(
  meter: SteadySpeedMeter,
  {
    from,
    seconds,
    slow = () => 1,
  }: { from: number; seconds: number; slow?: (at: number) => number },
): void {
  for (let n = 0; n < seconds * 20; n++) {
    const at = from + n / 20;
    const pairs = 1 + (n % 4);
    const computeSeconds = slow(at) * (2e-3 + pairs * 1e-3);
    const bytes = pairs * 1000;
    const seconds = slow(at) * (4e-3 + bytes * 1e-7) + computeSeconds;
    meter.observe({ bytes, pairs, seconds, queueSeconds: 0, computeSeconds }, at);
  }
}

test("what a dispatch takes whatever its size is told from what its pairs and bytes add", () => {
  const meter = new SteadySpeedMeter();
  assert.equal(meter.steady.secondsPerPair, undefined);
  feed(meter, { from: 0, seconds: 30 });
  const { roundTripSeconds, bytesPerSecond, secondsPerPair, spread } = meter.steady;
  near(roundTripSeconds, 6e-3);
  near(bytesPerSecond, 1e7);
  near(secondsPerPair, 1e-3);
  assert.ok(spread < 1e-6, `${spread}`);
});

test("a shard that takes three times as long for six seconds in a row counts as that slow", () => {
  const meter = new SteadySpeedMeter();
  feed(meter, { from: 0, seconds: 100 });
  feed(meter, { from: 100, seconds: 4, slow: () => 3 });
  near(meter.steady.secondsPerPair, 1e-3);
  feed(meter, { from: 104, seconds: 4, slow: () => 3 });
  near(meter.steady.secondsPerPair, 3e-3);
  near(meter.steady.roundTripSeconds, 18e-3);
});

test("a shard that is somewhat slow for some seconds counts as it was; one that stays so for half a minute does not", () => {
  const meter = new SteadySpeedMeter();
  feed(meter, { from: 0, seconds: 100 });
  feed(meter, { from: 100, seconds: 20, slow: () => 1.8 });
  near(meter.steady.secondsPerPair, 1e-3);
  near(meter.steady.roundTripSeconds, 6e-3);
  feed(meter, { from: 120, seconds: 20, slow: () => 1.8 });
  near(meter.steady.secondsPerPair, 1.8e-3);
  near(meter.steady.roundTripSeconds, 10.8e-3);
});

test("the spread is that of the seconds' means, unknown at first, and none that a single outlier makes", () => {
  const meter = new SteadySpeedMeter();
  feed(meter, { from: 0, seconds: 3 });
  assert.ok(meter.steady.spread > 0.1, `${meter.steady.spread} after one slot`);
  const random = seededRandom(7);
  const swing = Float64Array.from({ length: 60 }, () => (random() < 0.5 ? -0.3 : 0.3));
  feed(meter, { from: 10, seconds: 100, slow: (at) => Math.exp(swing[Math.floor(at / 2)]) });
  assert.ok(meter.steady.spread > 0.2 && meter.steady.spread < 1, `${meter.steady.spread}`);
  feed(meter, { from: 200, seconds: 100, slow: (at) => (at >= 250 && at < 254 ? 20 : 1) });
  assert.ok(meter.steady.spread < 1e-6, `${meter.steady.spread}`);
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
