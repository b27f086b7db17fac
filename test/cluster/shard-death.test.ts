import assert from "node:assert/strict";
import { test } from "node:test";

import {
  type KnownPrompt,
  runUndisturbed,
  type UndisturbedRun,
} from "../../bench/rig/load-driver.ts";
import { withBusyCores } from "../support/busy-cores.ts";
import { countsOf, describeKills, REQUESTS, runKnown } from "../support/shard-kills.ts";
import { TINY_EXPERTS_BYTES } from "../support/tiny-experts.ts";

/**
 * Of prompts in which no two experts tie for the last place: the smallest distance is 3.4e-5. To drop such ones here, as
 * `withoutTies` does, takes 4 s.
 */
const SEED = 21;

/** Every so many answers one is long; the others are short, so that prompts and answers take turns in every step. */
const LONG_EVERY = 4;
const LONG = { count: REQUESTS / LONG_EVERY, minLength: 4, maxLength: 16, maxTokens: 16 };
const SHORT = { count: REQUESTS - LONG.count, minLength: 4, maxLength: 16, maxTokens: 4 };

/** Threads that keep the cores busy, and the share of dispatches that may be late for that. */
const BUSY_THREADS = 2;
const MAX_HEDGES = 0.1;

/** Long answers between short ones, and both undisturbed. */
async function draw(url: string): Promise<UndisturbedRun> {
  const long = await runUndisturbed(url, SEED, LONG);
  const short = await runUndisturbed(url, SEED + 1, SHORT);
  const prompts: KnownPrompt[] = [...short.prompts];
  for (const [i, prompt] of long.prompts.entries()) prompts.splice(i * LONG_EVERY, 0, prompt);
  return { prompts, longestGapMs: Math.max(long.longestGapMs, short.longestGapMs) };
}

describeKills(
  {
    name: "a cluster of 4 shards with two copies of every expert",
    copies: 2,
    cluster: {
      shards: 4,
      // Room for two copies on three of them: when one leaves, experts have to move.
      shardFlags: () => ["--memory-limit", `${(2 / 3) * TINY_EXPERTS_BYTES}`],
    },
    draw,
    patienceMs: 1000,
    phases: ["prefill", "decode", "move"],
  },
  (subject) => {
    test("sends few rows twice where cores are busy and every shard is well, and changes no token", async (t) => {
      const { url, undisturbed } = subject();
      const before = await countsOf(url);
      await withBusyCores(BUSY_THREADS, () => runKnown(url, undisturbed.prompts));
      const after = await countsOf(url);
      const hedges = after.hedges - before.hedges;
      const dispatches = after.dispatches - before.dispatches;
      t.diagnostic(`${hedges} hedges, ${dispatches} dispatches`);
      assert.equal(after.resends, before.resends);
      assert.ok(hedges <= MAX_HEDGES * dispatches, `${hedges} hedges, ${dispatches} dispatches`);
    });
  },
);

describeKills({
  name: "a cluster of 3 shards with one copy of every expert",
  copies: 1,
  // Else the planner makes copies of its own accord, of some two thirds of the experts after the first kill.
  cluster: { shards: 3, routerFlags: ["--plan-interval", "0"] },
  draw,
  patienceMs: 7000,
  phases: ["prefill", "decode", "move"],
});

describeKills({
  name: "a cluster of 2 shards on WebGPU with two copies of every expert",
  copies: 2,
  cluster: { shards: 2, device: "webgpu" },
  draw,
  patienceMs: 1000,
  phases: ["decode"],
});
