import { randomInt } from "node:crypto";
import { test } from "node:test";

import { assertSurvivesChaos } from "../support/chaos-suite.ts";

/** Seed of this run: the one that a failure reported, or a new one. */
const SEED = Number(process.env["SWITCHYARD_CHAOS_SEED"] ?? randomInt(2 ** 31));

test("5 minutes of kills, freezes, bad links, joins, drains and restarts cost no request and no token", async (t) => {
  t.diagnostic(`seed ${SEED}`);
  const { rounds, load, lostWithRouter, growth } = await assertSurvivesChaos({
    seed: SEED,
    durationMs: 300_000,
    shape: { maxFaultMs: 4000, redisOutageMs: 30_000, besideShare: 0.5 },
    concurrency: 8,
    convergeMs: 30_000,
    warmMs: 45_000,
    maxGrowthBytes: 32 << 20,
    onRound: ({ round, convergedAfterMs, tokens }) => {
      const { main, beside } = round;
      const what = beside === undefined ? main.kind : `${main.kind}, ${beside.kind}`;
      t.diagnostic(`${what}: at rest after ${Math.round(convergedAfterMs)} ms, ${tokens} tokens`);
    },
  });
  for (const { name, rounds: lived, bytes } of growth)
    t.diagnostic(`${name}: ${(bytes / 2 ** 20).toFixed(1)} MiB more after ${lived} rounds`);
  t.diagnostic(
    `${rounds.length} rounds, ${load.requests} requests, ${lostWithRouter.length} lost with their router, ` +
      `longest gap ${Math.round(load.longestGapMs)} ms`,
  );
});
