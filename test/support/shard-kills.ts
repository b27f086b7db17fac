/** Suites in which a shard is killed under load while prompts are read, while tokens are made, and while experts move. */

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
  type DrivenLoad,
  failureText,
  judgeLoad,
  type DrivenRequest,
  type KnownPrompt,
  type UndisturbedRun,
} from "../../bench/rig/load-driver.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { unreadBytes } from "./unread-bytes.ts";

/** Requests of each load, and how many of them run at a time. */
export const REQUESTS = 200;
const CONCURRENCY = 16;

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

/** The shard that leaves in the move. */
const LEAVING = 2;

/**
 * Times that a shard is killed until rows were lost with it. On busy cores a router may see that it is gone only when its
 * rows are late: where there are other copies, they have gone to those by then, as hedges.
 */
const TRIES = 2;

/** When a shard is killed. */
export type Phase = "prefill" | "decode" | "move";

/** A kind of cluster, and how it is killed. */
export interface KillSuite {
  readonly name: string;
  /** Of each expert, at least. */
  readonly copies: 1 | 2;
  readonly cluster: ElasticOptions;
  /** Draws REQUESTS prompts, with what an undisturbed cluster answers; called once for all suites of a file. */
  readonly draw: (url: string) => Promise<UndisturbedRun>;
  /** By how much longer than undisturbed a token may let wait, milliseconds. */
  readonly patienceMs: number;
  /** A shard is killed in each of these, and is back before the next. */
  readonly phases: readonly Phase[];
}

/** A cluster, what it is to answer, and how long its tokens let wait while nothing happens. */
export interface Subject {
  readonly cluster: ElasticCluster;
  readonly url: string;
  readonly undisturbed: UndisturbedRun;
}

/** What the first cluster answered: the others have the same weights. */
let known: readonly KnownPrompt[] | undefined;

async function startSubject({ copies, cluster: options, draw }: KillSuite): Promise<Subject> {
  const own = ["--kv-blocks", `${KV_BLOCKS}`, "--min-copies", `${copies}`];
  const { routerFlags = [] } = options;
  assert.ok(typeof routerFlags !== "function");
  const cluster = await ElasticCluster.start({ ...options, routerFlags: [...own, ...routerFlags] });
  try {
    const [{ url }] = cluster.routers();
    await waitFor(`${copies} copies of each expert`, () => haveCopies(url, copies), CONVERGE_MS);
    const undisturbed = known === undefined ? await draw(url) : await runKnown(url, known);
    assert.equal(undisturbed.prompts.length, REQUESTS);
    known ??= undisturbed.prompts;
    return { cluster, url, undisturbed };
  } catch (error) {
    await cluster.close();
    throw error;
  }
}

/** The ranks that hold each expert of each layer. */
async function holders(url: string): Promise<(number | "local")[][]> {
  const { layers } = await placementOf(url);
  return layers.flatMap(({ experts }) => experts.map((copies) => copies.map(({ rank }) => rank)));
}

/** Whether every expert has so many copies; where it is one, none has more. */
async function haveCopies(url: string, copies: 1 | 2): Promise<boolean> {
  const counts = (await holders(url)).map(({ length }) => length);
  return copies === 1 ? counts.every((n) => n === 1) : counts.every((n) => n >= copies);
}

/** Sends a part of the prompts for the longest gap, and checks the answers. */
export async function runKnown(
  url: string,
  prompts: readonly KnownPrompt[],
): Promise<UndisturbedRun> {
  const some = prompts.slice(0, 3 * CONCURRENCY);
  const load = driveLoad({ prompts: some, concurrency: CONCURRENCY, target: () => url });
  await load.done;
  const { failed, wrong, longestGapMs } = judgeLoad(load.requests);
  assert.deepEqual([...failed, ...wrong], []);
  return { prompts, longestGapMs };
}

/** What a router has done so far. */
interface Counts {
  readonly dispatches: number;
  /** Dispatches that failed and were sent again, for any reason. */
  readonly resends: number;
  /** Of them, those whose shard was lost. */
  readonly lost: number;
  /** Dispatches that were late and sent twice: no re-sends, as nothing has failed yet. */
  readonly hedges: number;
  /** Rows that waited for a copy of their experts. */
  readonly waits: number;
}

/** The counts of a router. */
export async function countsOf(url: string): Promise<Counts> {
  const lost = (await metricSamples(url)).find(
    ({ name, labels }) => name === "moe_resends_total" && labels["reason"] === "lost",
  );
  return {
    dispatches: await metric(url, "moe_dispatch_outcomes_total"),
    resends: await metric(url, "moe_resends_total"),
    lost: lost?.value ?? 0,
    hedges: await metric(url, "moe_hedges_total"),
    waits: await metric(url, "moe_copy_wait_seconds_count"),
  };
}

/**
 * Has a shard killed under a load that `kill` starts, and checks every answer. Requests go on until the kill: those beyond
 * the last prompt are the first ones again. Fails where a token let wait for more than the suite's patience longer than
 * undisturbed, or rows did not wait for experts that had one copy alone. Returns how many dispatches failed with the
 * shard and were sent again, and how many were sent twice for being late.
 */
async function assertSurvives(
  t: TestContext,
  { cluster, url, undisturbed }: Subject,
  { copies, patienceMs }: KillSuite,
  kill: (start: () => readonly DrivenRequest[]) => Promise<void>,
): Promise<{ readonly lost: number; readonly hedges: number }> {
  const before = await countsOf(url);
  const alone = (await holders(url)).filter(({ length }) => length === 1).length;
  const killed = new AbortController();
  let load: DrivenLoad | undefined;
  const start = () => {
    load = driveLoad({
      prompts: undisturbed.prompts,
      concurrency: CONCURRENCY,
      target: () => url,
      until: killed.signal,
      atLeast: REQUESTS,
    });
    return load.requests;
  };
  try {
    await kill(start);
  } finally {
    killed.abort();
    await load?.done;
  }
  const verdict = judgeLoad(load?.requests ?? []);
  assert.ok(verdict.requests >= REQUESTS, `${verdict.requests} requests`);
  assert.equal(verdict.failed.length, 0, `${failureText(verdict.failed)}\n${cluster.output()}`);
  assert.deepEqual(verdict.wrong, []);
  const after = await countsOf(url);
  const [resends, lost, hedges, waits] = (["resends", "lost", "hedges", "waits"] as const).map(
    (of) => after[of] - before[of],
  );
  const limit = undisturbed.longestGapMs + patienceMs;
  t.diagnostic(
    `${verdict.requests} requests, ${resends} resends (${lost} for the loss), ${hedges} hedges, ${waits} waits for a copy, ${alone} experts with one copy before, ` +
      `longest gap ${Math.round(verdict.longestGapMs)} ms, undisturbed ${Math.round(undisturbed.longestGapMs)}, limit ${Math.round(limit)}`,
  );
  if (copies === 1) assert.ok(waits > 0, "no rows waited for experts to have a home again");
  assert.ok(
    verdict.longestGapMs <= limit,
    `${verdict.longestGapMs} ms without a token, the limit is ${limit}`,
  );
  return { lost, hedges };
}

/**
 * Stops one of the shards for good when rows come to it that it does not read any more; the first that this is true of.
 * A kill at any other moment mostly finds no rows: a shard has them for some milliseconds of a step. This is the strictest
 * kill, too, as what the shard was sent is lost for sure; the time that it stands still counts for the gaps.
 */
async function stopUnderRows(shards: readonly ElasticShard[]): Promise<ElasticShard> {
  return waitFor(
    `rows for ${shards.map(({ process }) => process.name).join(" or ")}`,
    async () => {
      for (const shard of shards) {
        if (await stopsUnderRows(shard, ROWS_MS)) return shard;
        // It had its rows before, or gets none just now.
        shard.process.kill("SIGCONT");
        // A shard that is stopped most of the time is asked less and less.
        await delay(5 * ROWS_MS);
      }
      return false;
    },
    MOMENT_MS,
  );
}

/** Stops a shard; whether rows come to it. */
async function stopsUnderRows({ process }: ElasticShard, withinMs: number): Promise<boolean> {
  const port = process.ready.port ?? 0;
  process.kill("SIGSTOP");
  const before = unreadBytes(port);
  const endsAt = performance.now() + withinMs;
  while (performance.now() < endsAt) {
    if (unreadBytes(port) - before >= ROWS_BYTES) return true;
    await delay(1);
  }
  return false;
}

/** Kills one of the shards as it runs, at a moment at which rows have come to it that it has not read yet; the first that this is true of. */
async function killUnderRows(
  cluster: ElasticCluster,
  shards: readonly ElasticShard[],
): Promise<ElasticShard> {
  const endsAt = performance.now() + MOMENT_MS;
  while (performance.now() < endsAt) {
    for (const shard of shards) {
      if (unreadBytes(shard.process.ready.port ?? 0) < ROWS_BYTES) continue;
      await cluster.killShard(shard.rank);
      return shard;
    }
    await delay(1);
  }
  throw new Error(`no shard had unread rows within ${MOMENT_MS} ms`);
}

/** A quarter of the requests is sent, and some are between two tokens. */
const inDecode = (requests: readonly DrivenRequest[]) =>
  requests.length > REQUESTS / 4 && requests.some(isDecoding);

const isDecoding = ({ tokens, endedAt }: DrivenRequest) =>
  tokens.length > 0 && endedAt === undefined;

/** Tests of a kind of cluster; `more` adds others of its own before the first kill. */
export function describeKills(suite: KillSuite, more?: (subject: () => Subject) => void): void {
  const { name, copies, phases } = suite;
  describe(name, () => {
    let subject: Subject;
    let shards: readonly ElasticShard[];
    /** The move of the last kill; undefined where nothing moves. */
    let drained: Promise<void> | undefined;
    /** Dispatches that were lost with the shards of all kills so far. */
    let lostInAll = 0;
    before(async () => {
      subject = await startSubject(suite);
      shards = subject.cluster.shards();
    });
    after(() => subject?.cluster.close());

    /** Brings back what was killed or left. */
    const restore = async (): Promise<void> => {
      const { cluster } = subject;
      if (drained !== undefined) await cluster.stopShard(LEAVING);
      drained = undefined;
      const living = new Set(cluster.shards().map(({ rank }) => rank));
      for (const shard of shards) if (!living.has(shard.rank)) await cluster.restartShard(shard);
      await waitForConvergence(cluster, CONVERGE_MS);
    };

    /** The shards that hold experts, but not the one that leaves; those first that hold most, or most that no other holds. */
    const victims = async (): Promise<readonly ElasticShard[]> => {
      const experts = await holders(subject.url);
      const held = (rank: number) => {
        const its = experts.filter((ranks) => ranks.includes(rank));
        return (copies === 1 ? its.filter(({ length }) => length === 1) : its).length;
      };
      const living = subject.cluster.shards();
      const able = living.filter(({ rank }) => rank !== LEAVING && held(rank) > 0);
      return able.sort((a, b) => held(b.rank) - held(a.rank));
    };

    const inTheMiddle = (requests: readonly DrivenRequest[]) =>
      waitFor("requests between two tokens", () => inDecode(requests), MOMENT_MS);

    /** Kills a shard that the rows of the first prompts wait for; it is stopped before any of those arrives. */
    const killInPrefill = async (start: () => readonly DrivenRequest[]): Promise<void> => {
      const [shard] = await victims();
      const requests = start();
      assert.ok(await stopsUnderRows(shard, MOMENT_MS), "no rows came");
      const unanswered = requests.filter(({ tokens }) => tokens.length === 0).length;
      await subject.cluster.killShard(shard.rank);
      // The first step is of those that arrive first, and may have needed other shards only.
      assert.ok(unanswered > CONCURRENCY / 2, `${unanswered} requests had no token yet`);
    };

    /** Kills a shard as it runs, while requests are between two tokens. */
    const killInDecode = async (start: () => readonly DrivenRequest[]): Promise<void> => {
      const able = await victims();
      const requests = start();
      await inTheMiddle(requests);
      await killUnderRows(subject.cluster, able);
      assert.ok(requests.some(isDecoding), "no request was between two tokens");
    };

    /**
     * Kills a shard that rows and a move wait for, when another has what it gets by the move. What holds the move up until
     * then is the shard itself, whose rows have no other copy; where they have, that would answer them in the meantime:
     * there it is another shard, which goes on after the kill.
     */
    const killInMove = async (start: () => readonly DrivenRequest[]): Promise<void> => {
      const { cluster, url } = subject;
      const able = await victims();
      await inTheMiddle(start());
      const holdsUp = copies === 1 ? await stopUnderRows(able) : able[able.length - 1];
      holdsUp.process.kill("SIGSTOP");
      try {
        drained = drainShard(cluster, LEAVING);
        drained.catch(() => undefined);
        await waitFor(
          "a placement that is loaded beside the one in use",
          async () => (await shardsOf(url)).some(({ epochs }) => epochs.length > 1),
          MOVE_MS,
        );
        const others = able.filter((shard) => shard !== holdsUp);
        const shard = copies === 1 ? holdsUp : await stopUnderRows(others);
        await cluster.killShard(shard.rank);
      } finally {
        if (cluster.shards().includes(holdsUp)) holdsUp.process.kill("SIGCONT");
      }
    };

    const kills = { prefill: killInPrefill, decode: killInDecode, move: killInMove };

    more?.(() => subject);

    for (const phase of phases) {
      test(`answers all of 200 streaming requests when a shard is killed during ${phase}`, async (t) => {
        let sent = { lost: 0, hedges: 0 };
        for (let tries = 0; tries < TRIES && sent.lost === 0; tries++) {
          await restore();
          sent = await assertSurvives(t, subject, suite, kills[phase]);
          await drained;
        }
        lostInAll += sent.lost;
        const { lost, hedges } = sent;
        assert.ok(
          lost > 0 || (copies > 1 && hedges > 0),
          "no rows of a killed shard were sent again",
        );
      });
    }

    if (phases.length > 1) {
      test("has sent rows of killed shards again, and not in hedges alone", () => {
        assert.ok(lostInAll > 0);
      });
    }
  });
}
