import { test } from "node:test";

import { assertSurvivesChaos } from "../support/chaos-suite.ts";

test("45 seconds of kills, freezes, bad links, joins, drains and restarts cost no request and no token", async () => {
  await assertSurvivesChaos({
    seed: Number(process.env["SWITCHYARD_CHAOS_SEED"] ?? 20_261_122),
    durationMs: 45_000,
    shape: { maxFaultMs: 1500, redisOutageMs: 3000, besideShare: 0.3 },
    concurrency: 3,
    convergeMs: 15_000,
    warmMs: 15_000,
    maxGrowthBytes: 64 << 20,
  });
});
