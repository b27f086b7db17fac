import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, describe, it } from "node:test";

import type { DispatchReport } from "../../../router-service/cluster/dispatch/attempts.ts";
import type { Cluster, ClusterOptions } from "../../../router-service/cluster/cluster.ts";
import type { ClusterPlacement } from "../../../router-service/cluster/planning/first-placement.ts";
import type { ResendReason } from "../../../router-service/cluster/dispatch/resend.ts";
import { type Alteration, alteringDevice } from "../../support/altered-device.ts";
import { assertClose, testValues } from "../../../bench/rig/expert-reference.ts";
import { hostStep, hostValues, testRouting } from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard, type TestShard } from "../../support/shards.ts";
import { placed } from "../../support/tiny-experts.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";

const routing = testRouting(6, 4, (token, k) => (token * 2 + k * 3) % 12);
const rows = testValues(6 * 64, 1);
const run = async (cluster: Cluster, signal = new AbortController().signal) => {
  const step = hostStep(rows, routing, signal);
  return hostValues(await cluster.runExperts(0, step.hiddenStates, step.routing));
};

const halves = (expert: number) => [expert < 6 ? 0 : 1];

describe("rows whose shard fails them", () => {
  /** What happens to a run, by the rank that it is on. */
  let trap: (rank: number) => Alteration | undefined = () => undefined;
  const reports: DispatchReport[] = [];
  const resends: ResendReason[] = [];
  let hedges = 0;
  let shards: TestShard[];
  let cluster: Cluster;
  let expected: Float32Array;
  const outcomes = () => reports.map(({ rank, outcome }) => `${rank} ${outcome}`).sort();
  /** Alters the next run on any shard; gives its rank, -1 before it. */
  const once = (alteration: Alteration) => {
    let victim = -1;
    trap = (rank) => {
      if (victim >= 0) return undefined;
      victim = rank;
      return alteration;
    };
    return () => victim;
  };
  const start = (rank: number, port?: number) =>
    startTestShard({ rank, port, wrapDevice: alteringDevice(() => trap(rank)) });
  const restart = async (rank: number) => {
    const port = Number(shards[rank].address.split(":")[1]);
    shards[rank] = await start(rank, port);
  };
  const connect = async (
    stored: ClusterPlacement,
    waits: Partial<Pick<ClusterOptions, "dispatchTimeoutMs" | "copyWaitMs" | "patienceMs">> = {},
  ) => {
    cluster = await connectTestCluster(
      shards.map(({ address }) => address),
      {
        ...waits,
        plansFirst: false,
        onDispatch: (report) => reports.push(report),
        onResend: (reason) => resends.push(reason),
        onHedge: () => hedges++,
      },
    );
    await cluster.adopt(stored);
    await cluster.ready();
  };
  before(async () => {
    shards = [await start(0), await start(1)];
    await connect(placed(1, halves));
    expected = await run(cluster);
    await cluster.close();
  });
  beforeEach(() => {
    reports.length = 0;
    resends.length = 0;
    hedges = 0;
    trap = () => undefined;
  });
  after(async () => {
    await cluster.close();
    await Promise.all(shards.map((shard) => shard.close()));
  });

  describe("with two copies of each expert", () => {
    let held: PromiseWithResolvers<void>;
    before(() => connect(placed(2, () => [0, 1])));
    beforeEach(() => {
      held = Promise.withResolvers();
    });
    // A run that is held for a test that failed would hold those after it.
    afterEach(() => held.resolve());
    after(() => cluster.close());

    it("go to the other copy when a shard refuses them", async () => {
      const victim = once({ before: () => Promise.reject(new Error("out of carries")) });
      assertClose(await run(cluster), expected, 1e-5);
      assert.deepEqual(resends, ["refused"]);
      assert.ok(outcomes().includes(`${victim()} refused`));
      assert.ok(outcomes().includes(`${1 - victim()} ok`));
    });

    it("go to another copy as well when an answer is late, and the first answer counts", async () => {
      for (let i = 0; i < 5; i++) await run(cluster);
      // A stall of the machine makes any answer late.
      reports.length = 0;
      resends.length = 0;
      hedges = 0;
      const victim = once({ before: () => held.promise });
      const startedAt = performance.now();
      assertClose(await run(cluster), expected, 1e-5);
      const tookMs = performance.now() - startedAt;
      assert.ok(tookMs < 1500, `${tookMs} ms; the dispatch timeout is 2 s`);
      assert.equal(hedges, 1);
      assert.deepEqual(resends, []);
      const other = 1 - victim();
      await waitFor("the report", () => outcomes().includes(`${victim()} cancelled`));
      reports.length = 0;
      assertClose(await run(cluster), expected, 1e-5);
      assert.deepEqual(outcomes(), [`${other} ok`], "a shard that is overdue is not asked first");
    });

    it("go to the other copy when a shard dies with them", async () => {
      const victim = once({ before: () => held.promise });
      const running = run(cluster);
      await waitFor("the run", () => victim() >= 0);
      const closing = shards[victim()].close();
      assertClose(await running, expected, 1e-5);
      assert.deepEqual(new Set(resends), new Set(["lost"]));
      assert.equal(cluster.missingReason(), undefined);
      held.resolve();
      await closing;
      await restart(victim());
      await waitFor("the shard", () => cluster.members()[victim()].state === "ready");
    });

    it("go to the other copy when sums are not finite, and the shard gets none for a while", async () => {
      const victim = once({ after: (sums) => sums.fill(NaN, 3, 4) });
      assertClose(await run(cluster), expected, 1e-5);
      assert.deepEqual(resends, ["wrong_result"]);
      const until = () => cluster.members()[victim()].quarantinedUntil;
      assert.ok((until() ?? 0) > Date.now());
      assert.equal(cluster.members()[1 - victim()].quarantinedUntil, undefined);
      reports.length = 0;
      assertClose(await run(cluster), expected, 1e-5);
      assert.deepEqual(outcomes(), [`${1 - victim()} ok`]);
      await waitFor("the end of the quarantine", () => until() === undefined);
    });

    it("that themselves make sums that are not finite get them, and others get theirs", async () => {
      const poisoned = 2;
      const mark = rows[poisoned * 64];
      trap = () => ({
        after: (sums, given) => {
          for (let at = 0; at < given.length; at += 64) {
            if (given[at] === mark) sums.fill(Infinity, at, at + 1);
          }
        },
      });
      const sums = await run(cluster);
      for (let token = 0; token < 6; token++) {
        const of = (values: Float32Array) => values.subarray(token * 64, (token + 1) * 64);
        if (token === poisoned) assert.ok(of(sums).every(Number.isNaN));
        else assertClose(of(sums), of(expected), 1e-5);
      }
      assert.ok(cluster.members().every(({ quarantinedUntil }) => quarantinedUntil === undefined));
    });
  });

  describe("with a first copy that is late", () => {
    let held: PromiseWithResolvers<void>;
    // It is late after 500 ms: what fails then has no time left for another copy.
    const waits = { dispatchTimeoutMs: 10_000, copyWaitMs: 400 };
    before(() =>
      connect(
        placed(3, () => [0, 1]),
        waits,
      ),
    );
    beforeEach(() => {
      held = Promise.withResolvers();
    });
    afterEach(() => held.resolve());
    after(() => cluster.close());

    it("are answered by it where the other copy refuses them, however late that is", async () => {
      const refuse = () => Promise.reject(new Error("out of carries"));
      trap = (rank) =>
        rank === 0 ? { before: () => held.promise } : hedges > 0 ? { before: refuse } : undefined;
      const running = run(cluster);
      await waitFor("the refusal", () => outcomes().includes("1 refused"));
      held.resolve();
      assertClose(await running, expected, 1e-5);
      assert.ok(outcomes().includes("0 ok"));
    });
  });

  describe("with one copy of each expert", () => {
    before(() => connect(placed(4, halves), { patienceMs: 200 }));
    after(() => cluster.close());

    it("wait for a shard that comes back", async () => {
      await shards[1].close();
      await waitFor("the loss", () => cluster.missingReason() !== undefined);
      assert.equal(cluster.unavailableReason(), undefined, "requests are not refused");
      const running = run(cluster);
      await waitFor("the other shard's part", () => outcomes().join() === "0 ok");
      const busyAt = cluster.lastBusyAt();
      assert.ok(performance.now() - busyAt < 100, "the step counts as away");
      await restart(1);
      assert.deepEqual(await running, expected);
      assert.deepEqual(outcomes(), ["0 ok", "1 ok"], "what was computed is kept");
    });

    it("wait until a placement gives their experts another home", async () => {
      await shards[1].close();
      await waitFor("the loss", () => cluster.missingReason() !== undefined);
      const running = run(cluster);
      await waitFor("the other shard's part", () => outcomes().join() === "0 ok");
      await cluster.adopt(placed(5, () => [0]));
      assertClose(await running, expected, 1e-5);
      assert.equal(cluster.current()?.placement.epoch, 5);
      await restart(1);
      await waitFor("the shard", () => cluster.members()[1].state === "ready");
    });

    it("are refused when nobody has had room for their experts for a while", async () => {
      await cluster.adopt(placed(6, halves));
      await shards[1].close();
      await waitFor("the loss", () => cluster.missingReason() !== undefined);
      const refused = assert.rejects(run(cluster), /5 experts of layer 2 fit nowhere/);
      cluster.setUnplaceable("5 experts of layer 2 fit nowhere");
      await refused;
      assert.match(cluster.unavailableReason() ?? "", /fit nowhere/);
      await restart(1);
      await cluster.ready();
      assert.equal(cluster.unavailableReason(), undefined);
      cluster.setUnplaceable(undefined);
      assert.deepEqual(await run(cluster), expected);
    });

    it("wait on where no shard is left, while new requests are refused, until one comes back", async () => {
      await Promise.all(shards.map((shard) => shard.close()));
      await waitFor("the loss", () => cluster.missingReason() !== undefined);
      const abort = new AbortController();
      let ended = false;
      const running = run(cluster, abort.signal).finally(() => (ended = true));
      await waitFor("the refusal", () => cluster.unavailableReason() !== undefined);
      assert.match(cluster.unavailableReason() ?? "", /experts without a living copy/);
      assert.ok(!ended, "what runs is not refused");
      await Promise.all([restart(0), restart(1)]);
      assert.deepEqual(await running, expected);
      assert.equal(cluster.unavailableReason(), undefined);
    });

    it("are given up with their step", async () => {
      await shards[1].close();
      await waitFor("the loss", () => cluster.missingReason() !== undefined);
      const abort = new AbortController();
      const running = assert.rejects(run(cluster, abort.signal), /the client went away/);
      await waitFor("the other shard's part", () => outcomes().join() === "0 ok");
      abort.abort(new Error("the client went away"));
      await running;
      await restart(1);
      await cluster.ready();
    });
  });
});
