import assert from "node:assert/strict";
import { test } from "node:test";

import { measureTrace } from "../../../bench/forecast/measure.ts";
import { traces } from "../../../bench/forecast/traces.ts";

const TRACES = traces(1024, 1);

const figures = new Map<string, ReturnType<typeof measureTrace>>();

/** Figures of a trace, measured once. */
function figuresOf(name: string) {
  const known = figures.get(name);
  if (known !== undefined) return known;
  const trace = TRACES.find((one) => one.name === name);
  assert.ok(trace !== undefined, name);
  const measured = measureTrace(trace);
  figures.set(name, measured);
  return measured;
}

for (const name of ["same task: law", "switching every 2048 tokens", "drifting mix"]) {
  test(`on recorded routing the forecast errs no more than the last window and the long average: ${name}`, () => {
    const [{ error, imbalance }] = figuresOf(name);
    assert.ok(
      error.forecast <= Math.min(error["last-window"], error["long-average"]),
      JSON.stringify(error),
    );
    const [even] = imbalance.forecast;
    assert.ok(even <= Math.min(imbalance["last-window"][0], imbalance["long-average"][0]) + 0.005);
    assert.ok(imbalance.hindsight[0] < even);
  });
}

test("in windows after a switch of tasks it errs by less than two thirds of what either does", () => {
  const [, { error, windows }] = figuresOf("switching every 2048 tokens");
  assert.ok(windows >= 5);
  assert.ok(
    error.forecast < (2 / 3) * Math.min(error["last-window"], error["long-average"]),
    JSON.stringify(error),
  );
});

test("no trace serves a token twice, and its windows are as long as asked", () => {
  for (const { windows } of TRACES) {
    for (const { counted } of windows) {
      const tokens = counted.series.reduce((sum, one) => sum + one.tokens, 0);
      assert.ok(tokens >= 1024 && tokens < 1024 + 64, `${tokens}`);
    }
  }
});
