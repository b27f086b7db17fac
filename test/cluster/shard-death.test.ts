import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { setTimeout as delay } from "node:timers/promises";

import { metric } from "../../bench/rig/api.ts";
import { drainShard, waitForConvergence } from "../../bench/rig/control-api.ts";
import { ElasticCluster, type ElasticOptions } from "../../bench/rig/elastic-cluster.ts";
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

/** Requests of each load, and how many of them run at a time. */
const REQUESTS = 200;
const CONCURRENCY = 16;

/** Tokens of each answer: few, so that prompts and answers take turns in every step. */
const MAX_TOKENS = 4;

const SIZES = { count: REQUESTS, minLength: 8, maxLength: 24, maxTokens: MAX_TOKENS };

/** Longest time until a placement stands again after a shard is back, milliseconds. */
const CONVERGE_MS = 15_000;

/** Fewer blocks than the prompts fill, so that each run computes them anew. */
const KV_BLOCKS = 128;

/** In this time a running load comes to every shard, milliseconds. */
const STEPS_MS = 150;

/** A cluster, what it is to answer, and how long its tokens let wait while nothing happens. */
interface Subject {
  readonly cluster: ElasticCluster;
  readonly url: string;
  readonly undisturbed: UndisturbedRun;
}

/** What the first cluster answered: the others have the same weights. */
let known: readonly KnownPrompt[] | undefined;

async function startSubject(options: Partial<ElasticOptions>): Promise<Subject> {
  const cluster = await ElasticCluster.start({
    shards: 3,
    ...options,
    routerFlags: ["--kv-blocks", `${KV_BLOCKS}`, ...(options.routerFlags ?? [])],
  });
  const [{ url }] = cluster.routers();
  const undisturbed =
    known === undefined ? await runUndisturbed(url, 21, SIZES) : await runKnown(url, known);
  known ??= undisturbed.prompts;
  return { cluster, url, undisturbed };
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

/** Tests of a kind of cluster: a shard is killed in each of these phases, and is back before the next. */
function describeKills(
  name: string,
  options: Partial<ElasticOptions>,
  patienceMs: number,
  phases: readonly ("prefill" | "decode" | "move")[],
): void {
  describe(name, () => {
    let subject: Subject;
    before(async () => {
      subject = await startSubject(options);
    });
    after(() => subject?.cluster.close());

    /** Kills a shard with rows that wait for it: it is stopped for the time of some steps before. Gives how it comes back. */
    const kill = async (rank: number): Promise<() => Promise<unknown>> => {
      const { cluster } = subject;
      const shard = cluster.shard(rank);
      shard.process.kill("SIGSTOP");
      await delay(STEPS_MS);
      await cluster.killShard(rank);
      return () => cluster.restartShard(shard);
    };

    for (const phase of phases) {
      test(`answers all of 200 streaming requests when a shard is killed during ${phase}`, async () => {
        let rest: () => Promise<unknown> = async () => undefined;
        await assertSurvives(
          subject,
          patienceMs,
          phase === "prefill" ? inPrefill : inDecode,
          async () => {
            if (phase !== "move") {
              rest = await kill(phase === "prefill" ? 0 : 1);
              return;
            }
            const drained = drainShard(subject.cluster, 2);
            drained.catch(() => undefined);
            rest = () => drained;
            await kill(1);
          },
        );
        await rest();
        // The shard that was killed during the move is gone for good.
        if (phase !== "move") await waitForConvergence(subject.cluster, CONVERGE_MS);
      });
    }
  });
}

describeKills(
  "a cluster of 3 shards with two copies of every expert",
  { routerFlags: ["--min-copies", "2"] },
  1000,
  ["prefill", "decode", "move"],
);

describeKills("a cluster of 3 shards with one copy of every expert", {}, 7000, [
  "prefill",
  "decode",
  "move",
]);

describeKills(
  "a cluster of 2 shards on WebGPU with two copies of every expert",
  { shards: 2, device: "webgpu", routerFlags: ["--min-copies", "2"] },
  1000,
  ["decode"],
);
