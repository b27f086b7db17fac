import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { metric } from "../support/api.ts";
import { drainShard, waitForConvergence } from "../support/control-api.ts";
import { ElasticCluster, type ElasticOptions } from "../support/elastic-cluster.ts";
import {
  driveLoad,
  failureText,
  judgeLoad,
  runUndisturbed,
  type DrivenRequest,
  type UndisturbedRun,
} from "../support/load-driver.ts";
import { waitFor } from "../support/wait-for.ts";

/** Requests of each load, and how many of them run at a time. */
const REQUESTS = 200;
const CONCURRENCY = 16;

/** Tokens of each answer: few, so that prompts and answers take turns in every step. */
const MAX_TOKENS = 6;

/** Fewer blocks than the prompts fill, so that each run computes them anew. */
const KV_BLOCKS = 256;

/** In this time a running load comes to every shard, milliseconds. */
const STEPS_MS = 150;

/** A cluster, and how it answers while nothing happens. */
interface Subject {
  readonly cluster: ElasticCluster;
  readonly url: string;
  readonly undisturbed: UndisturbedRun;
}

async function startSubject(options: Partial<ElasticOptions>): Promise<Subject> {
  const cluster = await ElasticCluster.start({
    shards: 3,
    ...options,
    routerFlags: ["--kv-blocks", `${KV_BLOCKS}`, ...(options.routerFlags ?? [])],
  });
  const [{ url }] = cluster.routers();
  const undisturbed = await runUndisturbed(url, 21, {
    count: REQUESTS,
    minLength: 8,
    maxLength: 48,
    maxTokens: MAX_TOKENS,
  });
  return { cluster, url, undisturbed };
}

/**
 * Sends all requests, disturbs the cluster when the load is as far as `when` says, and checks every answer.
 * Fails where rows were not sent again, or a token let wait for more than `patienceMs` longer than undisturbed.
 */
async function assertSurvives(
  { cluster, url, undisturbed }: Subject,
  patienceMs: number,
  when: (requests: readonly DrivenRequest[]) => boolean,
  disturb: () => Promise<void>,
): Promise<void> {
  // A late answer is not waited for either: then the hedge is what was sent again.
  const resent = async () =>
    (await metric(url, "moe_resends_total")) + (await metric(url, "moe_hedges_total"));
  const before = await resent();
  const load = driveLoad({
    prompts: undisturbed.prompts,
    concurrency: CONCURRENCY,
    target: () => url,
  });
  await waitFor("the moment", () => when(load.requests), 20_000);
  await disturb();
  await load.done;
  const verdict = judgeLoad(load.requests);
  assert.equal(verdict.requests, REQUESTS);
  assert.equal(verdict.failed.length, 0, `${failureText(verdict.failed)}\n${cluster.output()}`);
  assert.deepEqual(verdict.wrong, []);
  assert.ok((await resent()) > before, "no rows were sent again");
  const limit = undisturbed.longestGapMs + patienceMs;
  assert.ok(
    verdict.longestGapMs <= limit,
    `${verdict.longestGapMs} ms without a token, the limit is ${limit}`,
  );
}

/** Requests are under way and none has a token yet. */
const inPrefill = (requests: readonly DrivenRequest[]) =>
  requests.length === CONCURRENCY && requests.every(({ tokens }) => tokens.length === 0);

/** A quarter of the requests is done, and some are between two tokens. */
const inDecode = (requests: readonly DrivenRequest[]) =>
  requests.length > REQUESTS / 4 &&
  requests.some(({ tokens }) => tokens.length > 1 && tokens.length < MAX_TOKENS);

/** The kills of all phases, one after the other; each shard comes back in between. */
function describeKills(name: string, options: Partial<ElasticOptions>, patienceMs: number): void {
  describe(name, () => {
    let subject: Subject;
    before(async () => {
      subject = await startSubject(options);
    });
    after(() => subject?.cluster.close());

    /** Killed with rows that wait for it: stopped for the time of some steps before. */
    const killAndReturn = async (rank: number) => {
      const { cluster } = subject;
      const shard = cluster.shard(rank);
      shard.process.kill("SIGSTOP");
      await delay(STEPS_MS);
      await cluster.killShard(rank);
      return () => cluster.restartShard(shard);
    };

    test("answers all of 200 streaming requests when a shard is killed during prefill", async () => {
      let comeBack = async (): Promise<unknown> => undefined;
      await assertSurvives(subject, patienceMs, inPrefill, async () => {
        comeBack = await killAndReturn(0);
      });
      await comeBack();
      await waitForConvergence(subject.cluster, 15_000);
    });

    test("answers all of 200 streaming requests when a shard is killed during decode", async () => {
      let comeBack = async (): Promise<unknown> => undefined;
      await assertSurvives(subject, patienceMs, inDecode, async () => {
        comeBack = await killAndReturn(1);
      });
      await comeBack();
      await waitForConvergence(subject.cluster, 15_000);
    });

    test("answers all of 200 streaming requests when a shard is killed during a move", async () => {
      const { cluster } = subject;
      let drained: Promise<void> | undefined;
      await assertSurvives(subject, patienceMs, inDecode, async () => {
        drained = drainShard(cluster, 2);
        await killAndReturn(1);
      });
      await drained;
    });
  });
}

describeKills(
  "a cluster of 3 shards with two copies of every expert",
  { routerFlags: ["--min-copies", "2"] },
  1000,
);

describeKills("a cluster of 3 shards with one copy of every expert", {}, 7000);
