import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { openCheckpoint, type Checkpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { readExpert } from "../../../core/model/checkpoint/weights.ts";
import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import { packRows } from "../../../core/wire-rows.ts";
import type { Cluster } from "../../../router-service/cluster/cluster.ts";
import { LocalRank } from "../../../router-service/cluster/local-rank.ts";
import type { ClusterPlacement } from "../../../router-service/cluster/planning/first-placement.ts";
import { localRankOptions } from "../../../router-service/local-rank.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { placementOf } from "../../../bench/rig/shard-connection.ts";
import { assertClose, testValues } from "../../../bench/rig/expert-reference.ts";
import { hostStep, hostValues, testRouting } from "../../support/run-experts-contract.ts";
import {
  connectTestCluster,
  silentLogger,
  startTestShard,
  type TestShard,
} from "../../support/shards.ts";
import { waitFor } from "../../../bench/rig/wait-for.ts";
import { EXPERT_BYTES, placed } from "../../support/tiny-experts.ts";

const routing = testRouting(6, 4, (token, k) => (token * 2 + k * 3) % 12);
const rows = testValues(6 * 64, 1);

const placedOn = (epoch: number, rankOf: (expert: number) => number): ClusterPlacement =>
  placed(epoch, (expert) => [rankOf(expert)]);

describe("the router's own device in a cluster", () => {
  let checkpoint: Checkpoint;
  let shard: TestShard;
  let cluster: Cluster;
  const dispatched: number[] = [];
  const run = async (layer: number) => {
    const step = hostStep(rows, routing, new AbortController().signal);
    return hostValues(await cluster.runExperts(layer, step.hiddenStates, step.routing));
  };
  const local = () => cluster.members().find(({ rank }) => rank === LOCAL_RANK);
  before(async () => {
    checkpoint = await openCheckpoint(TINY_MODEL);
    shard = await startTestShard({ rank: 0 });
    cluster = await connectTestCluster([shard.address], {
      plansFirst: false,
      onDispatch: ({ rank }) => dispatched.push(rank),
      local: localRankOptions({
        checkpoint,
        settings: { tune: "never" },
        memory: { isOffered: true, bytes: () => 30 * EXPERT_BYTES },
        gpu: undefined,
        logger: silentLogger,
      }),
    });
    await cluster.adopt(placedOn(1, () => 0));
    await cluster.ready();
  });
  after(async () => {
    await cluster.close();
    await shard.close();
    await checkpoint.close();
  });

  it("says what it offers, and computes what a placement gives it", async () => {
    assert.equal(local()?.hello?.memoryBytes, 30 * EXPERT_BYTES);
    // Nothing was measured yet.
    const { samples, roundTripSeconds, bytesPerSecond } = local()!.steady;
    assert.deepEqual([samples, roundTripSeconds, bytesPerSecond], [0, 0, Infinity]);
    const expected = [await run(0), await run(1), await run(2)];
    dispatched.length = 0;
    await cluster.adopt(placedOn(2, (expert) => (expert < 5 ? LOCAL_RANK : 0)));
    for (const layer of [0, 1, 2]) assertClose(await run(layer), expected[layer], 1e-5);
    assert.deepEqual(new Set(dispatched), new Set([0, LOCAL_RANK]));
    await cluster.adopt(placedOn(3, (expert) => (expert > 6 ? LOCAL_RANK : 0)));
    for (const layer of [0, 1, 2]) assertClose(await run(layer), expected[layer], 1e-5);
    assert.deepEqual(local()?.epochs, [3]);
  });

  it("refuses what it has no room for, with the bytes, and the cluster stays as it was", async () => {
    await assert.rejects(
      cluster.adopt(placedOn(4, () => LOCAL_RANK)),
      new RegExp(`needs ${36 * EXPERT_BYTES} bytes.*at most ${30 * EXPERT_BYTES} can be had`),
    );
    assert.equal(cluster.current()?.placement.epoch, 3);
    await run(1);
  });

  it("keeps its part of rows whose other part waits for a shard", async () => {
    const expected = await run(2);
    await cluster.adopt(placedOn(5, (expert) => (expert < 5 ? LOCAL_RANK : 0)));
    assertClose(await run(2), expected, 1e-5);
    await shard.close();
    await waitFor("the loss", () => cluster.missingReason() !== undefined);
    const port = Number(shard.address.split(":")[1]);
    const running = run(2);
    shard = await startTestShard({ rank: 0, port });
    assertClose(await running, expected, 1e-5);
  });
});

it("lets runs come between the parts of an expert that is loaded", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const { config } = checkpoint;
  const events: string[] = [];
  let dispatchAt = -1;
  let answer: Promise<unknown> | undefined;
  const device = createCpuExpertDevice(config);
  const run = device.run.bind(device);
  device.run = (...rows) => {
    events.push("run");
    return run(...rows);
  };
  // Parts that take their time, as those of large experts do on a GPU.
  device.loadParts = function* (layer, slot, expert) {
    device.loadPacked(layer, slot, expert);
    for (let part = 0; part < 8; part++) {
      events.push("part");
      if (events.length === dispatchAt) answer = dispatch(1);
      const until = performance.now() + 3;
      while (performance.now() < until);
      yield 1;
    }
  };
  const local = new LocalRank(
    {
      adapter: "cpu",
      shaderF16: false,
      memoryBytes: () => Infinity,
      sizes: config,
      createDevice: async () => device,
      formats: () => ["f32"],
      readExpert: (layer, expert) => readExpert(checkpoint, layer, expert),
      logger: silentLogger,
    },
    () => {},
  );
  const dispatch = (epoch: number) => {
    const { hiddenSize, numExpertsPerToken: topK } = config;
    const header = { epoch, layer: 0, timeoutMs: 5000, hiddenSize, topK, traceparent: "" };
    return local.dispatch(header, {
      rows: packRows(testValues(hiddenSize, 1), hiddenSize, "f32"),
      expertIds: Uint16Array.from({ length: topK }, () => 1),
      topkWeights: new Float32Array(topK),
    }).answer;
  };
  await local.place(placementOf(checkpoint, [1], { epoch: 1, oldestLiveEpoch: 1 }));
  assert.equal(events.length, 0, "nothing is served before the first");
  dispatchAt = 4;
  await local.place(placementOf(checkpoint, [1, 2], { epoch: 2, oldestLiveEpoch: 1 }));
  await answer;
  assert.equal(events.length, 3 * 8 + 1);
  assert.ok(events.indexOf("run") < 7, events.join());
  await local.close();
  await checkpoint.close();
});

it("ends what is being loaded when it is closed, and leaves the closed device alone", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const { config } = checkpoint;
  const device = createCpuExpertDevice(config);
  let isClosed = false;
  const late: string[] = [];
  const watched = new Proxy(device, {
    get: (_, name) => {
      const value: unknown = Reflect.get(device, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]): unknown => {
        if (isClosed) late.push(String(name));
        isClosed ||= name === "close";
        return Reflect.apply(value, device, args);
      };
    },
  });
  let reads = 0;
  let onRead = () => {};
  const local = new LocalRank(
    {
      adapter: "cpu",
      shaderF16: false,
      memoryBytes: () => Infinity,
      sizes: config,
      createDevice: async () => watched,
      formats: () => ["f32"],
      readExpert: (layer, expert) => {
        reads++;
        onRead();
        return readExpert(checkpoint, layer, expert);
      },
      logger: silentLogger,
    },
    () => {},
  );
  const place = (epoch: number, experts: readonly number[]) =>
    local.place(placementOf(checkpoint, experts, { epoch, oldestLiveEpoch: 1 }));
  await place(1, [1, 2]);
  await place(2, [2, 3]);
  reads = 0;
  let closing: Promise<void> | undefined;
  onRead = () => {
    closing ??= local.close();
    // There would be slots to free, and experts to load.
    local.release(2);
    place(4, [4]).catch(() => {});
  };
  const all = Array.from({ length: config.numExperts }, (_, expert) => expert);
  await assert.rejects(place(3, all), /the router is stopping/);
  await closing;
  await assert.rejects(place(5, [1]), /the router is stopping/);
  assert.ok(reads <= 2, `${reads} experts were read`);
  assert.deepEqual([isClosed, late], [true, []]);
  await checkpoint.close();
});
