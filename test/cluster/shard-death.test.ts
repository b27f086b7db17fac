import assert from "node:assert/strict";
import { after, before, describe, test, type TestContext } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { metric, metricSamples } from "../../bench/rig/api.ts";
import {
  drainShard,
  placementOf,
  shardsOf,
  waitForConvergence,
} from "../../bench/rig/control-api.ts";
import {
  ElasticCluster,
  type ElasticOptions,
  type ElasticShard,
} from "../../bench/rig/elastic-cluster.ts";
import {
  driveLoad,
  failureText,
  judgeLoad,
  runUndisturbed,
  type DrivenRequest,
  type KnownPrompt,
  type UndisturbedRun,
} from "../../bench/rig/load-driver.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { withBusyCores } from "../support/busy-cores.ts";
import { TINY_EXPERTS_BYTES } from "../support/tiny-experts.ts";
import { unreadBytes } from "../support/unread-bytes.ts";

/** Requests of each load, and how many of them run at a time. */
const REQUESTS = 200;
const CONCURRENCY = 16;

/** Tokens of each answer: few, so that prompts and answers take turns in every step. */
const MAX_TOKENS = 4;

/**
 * Of prompts in which no two experts tie for the last place: the smallest distance is 3.4e-5. To drop such ones here, as
 * `withoutTies` does, takes 4 s.
 */
const SEED = 21;

const SIZES = { count: REQUESTS, minLength: 8, maxLength: 24, maxTokens: MAX_TOKENS };

/** Longest time until a placement stands again after a shard is back, milliseconds. */
const CONVERGE_MS = 15_000;

/** Fewer blocks than the prompts fill, so that each run computes them anew. */
const KV_BLOCKS = 128;

/** Bytes of a dispatch of two rows; less may be none. */
const ROWS_BYTES = 512;

/** Time that a shard is stopped in the hope of rows; after more, they would go to another copy as well, milliseconds. */
const ROWS_MS = 60;

/** Longest wait for the moment to disturb, milliseconds. */
const MOMENT_MS = 20_000;

/** Longest time from the word that a shard is to leave until others hold its experts, milliseconds. */
const MOVE_MS = 5_000;

/** Threads that keep the cores busy, and the share of dispatches that may be late for that. */
const BUSY_THREADS = 2;
const MAX_HEDGES = 0.1;

/** The shard that leaves in the move. */
const LEAVING = 2;

/** A cluster, what it is to answer, and how long its tokens let wait while nothing happens. */
interface Subject {
  readonly cluster: ElasticCluster;
  readonly url: string;
  readonly undisturbed: UndisturbedRun;
  /** Of each expert, at least. */
  readonly copies: number;
}

/** What the first cluster answered: the others have the same weights. */
let known: readonly KnownPrompt[] | undefined;

async function startSubject(copies: 1 | 2, options: ElasticOptions): Promise<Subject> {
  const cluster = await ElasticCluster.start({
    ...options,
    routerFlags: [
      ["--kv-blocks", `${KV_BLOCKS}`, "--min-copies", `${copies}`],
      // Ours would make copies of all that it has room for.
      copies === 1 ? ["--placement-policy", "static"] : [],
    ].flat(),
  });
  try {
    const [{ url }] = cluster.routers();
    await waitFor(`${copies} copies of each expert`, () => haveCopies(url, copies), CONVERGE_MS);
    const undisturbed =
      known === undefined ? await runUndisturbed(url, SEED, SIZES) : await runKnown(url, known);
    known ??= undisturbed.prompts;
    return { cluster, url, undisturbed, copies };
  } catch (error) {
    await cluster.close();
    throw error;
  }
}

/** Whether every expert has so many copies; where it is one, none has more. */
async function haveCopies(url: string, copies: 1 | 2): Promise<boolean> {
  const { layers } = await placementOf(url);
  const counts = layers.flatMap(({ experts }) => experts.map(({ length }) => length));
  return copies === 1 ? counts.every((n) => n === 1) : counts.every((n) => n >= copies);
}

/** Sends a part of the prompts for the longest gap, and checks the answers. */
async function runKnown(url: string, prompts: readonly KnownPrompt[]): Promise<UndisturbedRun> {
  const some = prompts.slice(0, 3 * CONCURRENCY);
  const load = driveLoad({ prompts: some, concurrency: CONCURRENCY, target: () => url });
  await load.done;
  const { failed, wrong, longestGapMs } = judgeLoad(load.requests);
  assert.deepEqual([...failed, ...wrong], []);
  return { prompts, longestGapMs };
}

/** Dispatches of a router so far: all, those that failed and were sent again, and those that were late and sent twice. */
async function sentAgain(url: string) {
  return {
    dispatches: await metric(url, "moe_dispatch_outcomes_total"),
    resends: await metric(url, "moe_resends_total"),
    hedges: await metric(url, "moe_hedges_total"),
  };
}

/**
 * Sends all requests, disturbs the cluster when the load is as far as `when` says, and checks every answer. Requests go on
 * until the disturbance is done: those beyond the last prompt are the first ones again.
 * Fails where rows were not sent again, or a token let wait for more than `patienceMs` longer than undisturbed.
 * Where experts have other copies, a hedge may have been sooner than the loss of the shard; else none is possible.
 */
async function assertSurvives(
  t: TestContext,
  { cluster, url, undisturbed, copies }: Subject,
  patienceMs: number,
  when: (requests: readonly DrivenRequest[]) => boolean,
  disturb: () => Promise<void>,
): Promise<void> {
  const before = await sentAgain(url);
  const disturbed = new AbortController();
  const load = driveLoad({
    prompts: undisturbed.prompts,
    concurrency: CONCURRENCY,
    target: () => url,
    until: disturbed.signal,
    atLeast: REQUESTS,
  });
  try {
    await waitFor("the moment", () => when(load.requests), MOMENT_MS);
    await disturb();
  } finally {
    disturbed.abort();
  }
  await load.done;
  const verdict = judgeLoad(load.requests);
  assert.ok(verdict.requests >= REQUESTS, `${verdict.requests} requests`);
  assert.equal(verdict.failed.length, 0, `${failureText(verdict.failed)}\n${cluster.output()}`);
  assert.deepEqual(verdict.wrong, []);
  const after = await sentAgain(url);
  const resends = after.resends - before.resends;
  const hedges = after.hedges - before.hedges;
  assert.ok(copies > 1 ? resends + hedges > 0 : resends > 0, "no rows were sent again");
  const limit = undisturbed.longestGapMs + patienceMs;
  t.diagnostic(
    `${resends} resends, ${hedges} hedges, longest gap ${Math.round(verdict.longestGapMs)} ms, limit ${Math.round(limit)} ms`,
  );
  assert.ok(
    verdict.longestGapMs <= limit,
    `${verdict.longestGapMs} ms without a token, the limit is ${limit}`,
  );
}

/** Stops one of the shards for good when rows come to it that it does not read any more; the first that this is true of. */
async function stopUnderRows(shards: readonly ElasticShard[]): Promise<ElasticShard> {
  return waitFor(
    `rows for ${shards.map(({ process }) => process.name).join(" or ")}`,
    async () => {
      for (const shard of shards) {
        if (await stopsUnderRows(shard)) return shard;
        // A shard that is stopped most of the time is asked less and less.
        await delay(5 * ROWS_MS);
      }
      return false;
    },
    MOMENT_MS,
  );
}

/** Stops a shard, for good where rows come to it; else it had its rows before, or gets none just now. */
async function stopsUnderRows({ process }: ElasticShard): Promise<boolean> {
  const port = process.ready.port ?? 0;
  process.kill("SIGSTOP");
  const before = await unreadBytes(port);
  const endsAt = performance.now() + ROWS_MS;
  while (performance.now() < endsAt) {
    if ((await unreadBytes(port)) - before >= ROWS_BYTES) return true;
    await delay(1);
  }
  process.kill("SIGCONT");
  return false;
}

/** Requests are under way and none has a token yet. */
const inPrefill = (requests: readonly DrivenRequest[]) =>
  requests.length === CONCURRENCY && requests.every(({ tokens }) => tokens.length === 0);

/** A quarter of the requests is done, and some are between two tokens. */
const inDecode = (requests: readonly DrivenRequest[]) =>
  requests.length > REQUESTS / 4 &&
  requests.some(({ tokens }) => tokens.length > 1 && tokens.length < MAX_TOKENS);

/** Tests of a kind of cluster: a shard is killed in each of these phases, and is back before the next. */
function describeKills(
  name: string,
  copies: 1 | 2,
  options: ElasticOptions,
  patienceMs: number,
  phases: readonly ("prefill" | "decode" | "move")[],
): void {
  describe(name, () => {
    let subject: Subject;
    before(async () => {
      subject = await startSubject(copies, options);
    });
    after(() => subject?.cluster.close());

    /** The shards that hold experts, those with most first, but not the one that leaves: rows may go to few of them. */
    const victims = async (): Promise<readonly ElasticShard[]> => {
      const { cluster, url } = subject;
      const { layers } = await placementOf(url);
      const copies = layers.flatMap(({ experts }) => experts.flat());
      const held = (rank: number) => copies.filter((copy) => copy.rank === rank).length;
      const shards = cluster.shards().filter(({ rank }) => rank !== LEAVING && held(rank) > 0);
      return shards.sort((a, b) => held(b.rank) - held(a.rank));
    };

    /** Kills a shard that rows wait for. Gives how it comes back. */
    const kill = async (): Promise<() => Promise<unknown>> => {
      const { cluster } = subject;
      const shard = await stopUnderRows(await victims());
      await cluster.killShard(shard.rank);
      return () => cluster.restartShard(shard);
    };

    /** Kills a shard that rows and a move wait for, when another has what it gets by the move. Gives when that is over. */
    const killInMove = async (): Promise<() => Promise<unknown>> => {
      const { cluster, url } = subject;
      const shard = await stopUnderRows(await victims());
      const drained = drainShard(cluster, LEAVING);
      drained.catch(() => undefined);
      await waitFor(
        "a placement that is loaded beside the one in use",
        async () => (await shardsOf(url)).some(({ epochs }) => epochs.length > 1),
        MOVE_MS,
      );
      await cluster.killShard(shard.rank);
      return () => drained;
    };

    if (copies > 1 && options.device !== "webgpu") {
      test("sends few rows twice where cores are busy and every shard is well, and changes no token", async (t) => {
        const { url, undisturbed } = subject;
        const before = await sentAgain(url);
        await withBusyCores(BUSY_THREADS, () => runKnown(url, undisturbed.prompts));
        const after = await sentAgain(url);
        const hedges = after.hedges - before.hedges;
        const dispatches = after.dispatches - before.dispatches;
        t.diagnostic(`${hedges} hedges, ${dispatches} dispatches`);
        assert.equal(after.resends, before.resends);
        assert.ok(hedges <= MAX_HEDGES * dispatches, `${hedges} hedges, ${dispatches} dispatches`);
      });
    }

    for (const phase of phases) {
      test(`answers all of 200 streaming requests when a shard is killed during ${phase}`, async (t) => {
        let rest: () => Promise<unknown> = async () => undefined;
        await assertSurvives(
          t,
          subject,
          patienceMs,
          phase === "prefill" ? inPrefill : inDecode,
          async () => {
            rest = phase === "move" ? await killInMove() : await kill();
          },
        );
        await rest();
        // The shard that was killed during the move is gone for good.
        if (phase !== "move") await waitForConvergence(subject.cluster, CONVERGE_MS);
      });
    }

    if (phases.length > 1) {
      test("has sent rows of killed shards again, and not in hedges alone", async () => {
        const lost = (await metricSamples(subject.url)).find(
          ({ name, labels }) => name === "moe_resends_total" && labels["reason"] === "lost",
        );
        assert.ok((lost?.value ?? 0) > 0, JSON.stringify(lost));
      });
    }
  });
}

describeKills(
  "a cluster of 4 shards with two copies of every expert",
  2,
  // Room for two copies on three of them: when one leaves, experts have to move.
  { shards: 4, shardFlags: () => ["--memory-limit", `${(2 / 3) * TINY_EXPERTS_BYTES}`] },
  1000,
  ["prefill", "decode", "move"],
);

describeKills("a cluster of 3 shards with one copy of every expert", 1, { shards: 3 }, 7000, [
  "prefill",
  "decode",
  "move",
]);

describeKills(
  "a cluster of 2 shards on WebGPU with two copies of every expert",
  2,
  { shards: 2, device: "webgpu" },
  1000,
  ["decode"],
);
