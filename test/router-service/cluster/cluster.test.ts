import assert from "node:assert/strict";
import { open } from "node:fs/promises";
import path from "node:path";
import { after, before, describe, it } from "node:test";

import type { Cluster } from "../../../router-service/cluster/cluster.ts";
import { DispatchFailedError } from "../../../router-service/cluster/errors.ts";
import type { DispatchReport } from "../../../router-service/cluster/dispatch/attempts.ts";
import { reconnectPauseMs } from "../../../router-service/cluster/shards/shard-client.ts";
import { UnavailableError } from "../../../router-service/engine/errors.ts";
import { testValues } from "../../../bench/rig/expert-reference.ts";
import { createGate, type Gate } from "../../support/gated-device.ts";
import { hostStep, testRouting } from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard, type TestShard } from "../../support/shards.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { freePort } from "../../../deploy/redis-process.ts";

const routing = testRouting(3, 4, (token, k) => (token + k * 3) % 12);
const rows = testValues(3 * 64, 1);
const run = (cluster: Cluster, signal = new AbortController().signal) => {
  const step = hostStep(rows, routing, signal);
  return Promise.resolve(cluster.runExperts(0, step.hiddenStates, step.routing));
};

/** Length of a safetensors file's header. */
async function headerBytes(dir: string): Promise<number> {
  const file = await open(path.join(dir, "model.safetensors"));
  const { buffer } = await file.read(Buffer.alloc(8), 0, 8, 0);
  await file.close();
  return Number(buffer.readBigUInt64LE());
}

describe("a cluster that does not fit", () => {
  let shard: TestShard;
  before(async () => {
    shard = await startTestShard({ rank: 4, weights: "f32", memoryLimit: 100_000 });
  });
  after(() => shard.close());

  for (const [what, options, text] of [
    ["another checkpoint", { modelHash: "00aa" }, /model_hash: the router has 00aa, the shard/],
    ["another dtype of weights", { weights: "f16" }, /weights: the router has f16, the shard/],
  ] as const) {
    it(`with ${what} is unavailable by the field's name, and never dispatches`, async () => {
      const cluster = await connectTestCluster([shard.address], options);
      await waitFor("the refusal", () => text.test(cluster.unavailableReason() ?? ""));
      await assert.rejects(run(cluster), UnavailableError);
      await cluster.close();
    });
  }

  it("with one rank twice is unavailable by that rank", async () => {
    const twin = await startTestShard({ rank: 4 });
    const cluster = await connectTestCluster([shard.address, twin.address]);
    await waitFor("the refusal", () =>
      /rank 4: shard .* has it too/.test(cluster.unavailableReason() ?? ""),
    );
    await cluster.close();
    await twin.close();
  });

  it("whose shard is nowhere is unavailable, and ready and weights end when it is closed", async () => {
    const cluster = await connectTestCluster([`127.0.0.1:${await freePort()}`]);
    const ready = assert.rejects(cluster.ready(), /stopping/);
    const weights = assert.rejects(cluster.weights(), /stopping/);
    await waitFor("a reason", () => /ECONNREFUSED/.test(cluster.unavailableReason() ?? ""));
    await cluster.close();
    await ready;
    await weights;
  });
});

describe("the pause before connecting again", () => {
  it("doubles up to one second, at least half of it certain", () => {
    assert.deepEqual(
      [0, 1, 2, 4, 5, 100].map((attempt) => reconnectPauseMs(attempt, 1)),
      [50, 100, 200, 800, 1000, 1000],
    );
    assert.equal(reconnectPauseMs(6, 0), 500);
  });
});

describe("a cluster of two shards", () => {
  let gate: Gate;
  let shards: TestShard[];
  let cluster: Cluster;
  let expected: unknown;
  const reports: DispatchReport[] = [];
  const outcomes = () => reports.map(({ rank, outcome }) => `${rank} ${outcome}`).sort();
  before(async () => {
    gate = createGate();
    gate.open();
    shards = [
      // Ranks, not addresses, are the order of the sums.
      await startTestShard({ rank: 1, wrapDevice: gate.wrap }),
      await startTestShard({ rank: 0 }),
    ];
    cluster = await connectTestCluster(
      shards.map(({ address }) => address),
      { dispatchTimeoutMs: 700, onDispatch: (report) => reports.push(report) },
    );
    await cluster.ready();
    expected = await run(cluster);
  });
  after(async () => {
    await cluster.close();
    await Promise.all(shards.map((shard) => shard.close()));
  });

  it("decides on the weights that are asked for", async () => {
    assert.equal(await cluster.weights(), "f32");
    const other = await startTestShard();
    const half = await connectTestCluster([other.address], { weights: "f16" });
    assert.equal(await half.weights(), "f16");
    await half.ready();
    await half.close();
    await other.close();
  });

  it("reports each dispatch with rank, rows, bytes and time", () => {
    assert.deepEqual(outcomes(), ["0 ok", "1 ok"]);
    for (const { rows: numRows, bytesOut, bytesIn, seconds } of reports) {
      assert.equal(numRows, 3);
      assert.equal(bytesOut, 3 * (64 * 4 + 4 * 2 + 4 * 4));
      assert.equal(bytesIn, 3 * 64 * 4);
      assert.ok(seconds > 0 && seconds < 10);
    }
  });

  it("holds each expert once, half of them on each shard, and reads no more than that", async () => {
    for (const { checkpoint } of shards) {
      const heldBytes = 3 * 6 * 3 * 64 * 40 * 2;
      const header = 8 + (await headerBytes(checkpoint.dir));
      const read = checkpoint.bytesRead();
      assert.ok(read >= heldBytes, `${read} bytes read, ${heldBytes} held`);
      assert.ok(read <= (heldBytes + header) * 1.01, `${read} read, ${heldBytes} + ${header}`);
    }
  });

  it("rejects at once when the step is aborted, and the next one works", async () => {
    gate.shut();
    const abort = new AbortController();
    const running = run(cluster, abort.signal);
    const begun = gate.begun();
    await waitFor("the run", () => gate.begun() > begun);
    reports.length = 0;
    abort.abort(new Error("the client went away"));
    await assert.rejects(running, /the client went away/);
    await waitFor("the report", () => outcomes().includes("1 cancelled"));
    gate.open();
    assert.deepEqual(await run(cluster), expected);
  });

  it("rejects when one shard refuses, names shard and reason, and the next one works", async () => {
    gate.failWith(new Error("the adder is out of carries"));
    await assert.rejects(
      run(cluster),
      (error) =>
        error instanceof DispatchFailedError &&
        error instanceof UnavailableError &&
        error.message.includes(shards[0].address) &&
        /layer 0.*out of carries/.test(error.message),
    );
    gate.failWith(undefined);
    assert.deepEqual(await run(cluster), expected);
  });

  it("refuses layers and experts that are not there", async () => {
    const step = hostStep(rows, routing, new AbortController().signal);
    await assert.rejects(async () => cluster.runExperts(3, step.hiddenStates, step.routing), /3/);
  });

  it("sends rows again to a shard that did not answer in time, and has them when it does", async () => {
    gate.shut();
    reports.length = 0;
    const running = run(cluster);
    await waitFor("the timeout", () => outcomes().includes("1 timeout"));
    const { seconds } = reports.find(({ outcome }) => outcome === "timeout") ?? { seconds: 0 };
    assert.ok(seconds >= 0.69 && seconds < 2, `waited ${seconds} s`);
    gate.open();
    assert.deepEqual(await running, expected);
  });

  it("loses a shard that stops, tells why, and has it back when it starts again", async () => {
    const losses: string[] = [];
    const stop = cluster.onChange(({ kind, member }) => {
      if (kind === "lost") losses.push(`${member?.address} ${member?.reason}`);
    });
    const { address } = shards[0];
    await shards[0].close();
    await waitFor("the loss", () => losses.length > 0);
    stop();
    assert.match(losses[0], new RegExp(`${address} the shard is stopping`));
    assert.match(cluster.missingReason() ?? "", /experts without a living copy: shard/);
    const running = run(cluster);
    const port = Number(address.split(":")[1]);
    shards[0] = await startTestShard({ rank: 1, port, wrapDevice: gate.wrap });
    await cluster.ready();
    assert.equal(cluster.missingReason(), undefined);
    assert.deepEqual(await running, expected);
  });

  it("takes a shard under another rank as another shard, and misses the one that was there", async () => {
    const port = Number(shards[1].address.split(":")[1]);
    await shards[1].close();
    shards[1] = await startTestShard({ rank: 7, port });
    await waitFor("the other shard", () => cluster.members()[1].rank === 7);
    await waitFor("what is missing", () =>
      /rank 0: no shard has it/.test(cluster.missingReason() ?? ""),
    );
    await shards[1].close();
    shards[1] = await startTestShard({ rank: 0, port });
    await cluster.ready();
    assert.deepEqual(await run(cluster), expected);
  });
});
