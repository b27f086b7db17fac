import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import {
  emptyProfiles,
  foldWindow,
  MAX_SERIES,
  SLOW_HALF_LIFE_SECONDS,
  type CountedWindow,
} from "../../../core/statistics/windows.ts";

const PHASE = "decode" as const;

function windowOf(counts: Readonly<Record<string, readonly number[]>>, steps = 1): CountedWindow {
  const series = Object.entries(counts).map(([task, cells]) => ({
    task,
    phase: PHASE,
    tokens: cells.reduce((sum, one) => sum + one, 0),
    expertTokens: Float64Array.from(cells),
  }));
  return { seconds: 10, steps, series };
}

const arbitraryCounts = fc.dictionary(
  fc.constantFrom("a", "b", "c"),
  fc.array(fc.nat(100), { minLength: 3, maxLength: 3 }),
);

test("profiles are the means that adding up with decay gives, for each task and for all", () => {
  fc.assert(
    fc.property(fc.array(arbitraryCounts, { maxLength: 6 }), (windows) => {
      let profiles = emptyProfiles(3);
      for (const counts of windows) profiles = foldWindow(profiles, windowOf(counts));
      const expected = (task: string | undefined, halfLife: number) => {
        const sums = [0, 0, 0];
        for (const [i, counts] of windows.entries()) {
          const age = 10 * (windows.length - 1 - i);
          for (const [name, cells] of Object.entries(counts)) {
            if (task !== undefined && name !== task) continue;
            cells.forEach((n, e) => (sums[e] += n * 2 ** (-age / halfLife)));
          }
        }
        return sums;
      };
      const check = (share: Float64Array, tokens: number, sums: readonly number[]) => {
        const whole = sums.reduce((sum, one) => sum + one, 0);
        assert.ok(Math.abs(tokens - whole) < 1e-6 * (1 + whole));
        if (whole === 0) return;
        sums.forEach((sum, e) => assert.ok(Math.abs(share[e] - sum / whole) < 1e-9));
      };
      for (const { task, slow } of profiles.series) {
        check(slow.share, slow.tokens, expected(task, SLOW_HALF_LIFE_SECONDS));
      }
      const { slow } = profiles.total;
      check(slow.share, slow.tokens, expected(undefined, SLOW_HALF_LIFE_SECONDS));
      check(profiles.long.share, profiles.long.tokens, expected(undefined, Infinity));
    }),
  );
});

test("tokens per step are a mean over steps: a window of few long ones counts as few", () => {
  let profiles = foldWindow(emptyProfiles(1), windowOf({ a: [1600] }, 100));
  profiles = foldWindow(profiles, windowOf({ a: [512] }, 2));
  const { tokens, steps } = profiles.stepped;
  assert.ok(tokens / steps > 16 && tokens / steps < 24, `${tokens} / ${steps}`);
  const idle = foldWindow(profiles, windowOf({}, 0));
  assert.deepEqual(idle.stepped, profiles.stepped);
});

test("a window changes no profile that was handed out before", () => {
  const before = foldWindow(emptyProfiles(3), windowOf({ a: [1, 2, 3] }));
  const copy = structuredClone(before);
  foldWindow(before, windowOf({ a: [9, 0, 0], b: [0, 9, 0] }));
  assert.deepEqual(before, copy);
});

test("an idle task keeps what is known of it, worth less", () => {
  let profiles = foldWindow(emptyProfiles(3), windowOf({ a: [1, 2, 1] }));
  for (let i = 0; i < 60; i++) profiles = foldWindow(profiles, windowOf({ b: [4, 0, 0] }));
  const a = profiles.series.find(({ task }) => task === "a");
  assert.deepEqual([...a!.slow.share], [0.25, 0.5, 0.25]);
  assert.ok(Math.abs(a!.slow.tokens - 2) < 1e-9);
  assert.ok(a!.fast.tokens < 1e-6);
});

test("at most 260 tasks and phases are kept, those with the most tokens", () => {
  let profiles = emptyProfiles(1);
  for (let i = 0; i < 400; i++)
    profiles = foldWindow(profiles, windowOf({ [`task-${i}`]: [1 + i] }));
  assert.equal(profiles.series.length, MAX_SERIES);
  assert.ok(profiles.series.every(({ task }) => Number(task.slice(5)) >= 100));
});
