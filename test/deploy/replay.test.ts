import assert from "node:assert/strict";
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";

import { RECORDED_SHAPE, readRecorded } from "../../bench/routing/recorded.ts";
import { type ReplayReport, type ReplaySettings, runReplay } from "../../deploy/replay-command.ts";
import { replay, type ReplayCluster, type RoutingTrace } from "../../deploy/replay.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { runCommand } from "../support/run-command.ts";

const LAYERS = 3;
const { numExperts, topK } = RECORDED_SHAPE;

/** The first layers of what was recorded of a task. */
function firstLayers(task: "law" | "intent"): RoutingTrace {
  const { ids, numTokens } = readRecorded(task);
  const row = RECORDED_SHAPE.layers.length * topK;
  const few = LAYERS * topK;
  const kept = new Uint8Array(numTokens * few);
  for (let token = 0; token < numTokens; token++) {
    kept.set(ids.subarray(token * row, token * row + few), token * few);
  }
  return { numTokens, ids: kept };
}

/** Shards of equal speed unless told otherwise, each with room for `slots` experts of a layer. */
function clusterOf(
  numShards: number,
  slots: number,
  slowdown: readonly number[] = [],
): ReplayCluster {
  return {
    layers: Array.from({ length: LAYERS }, (_, index) => index + 1),
    numExperts,
    topK,
    bytes: new Float64Array(LAYERS * numExperts).fill(1),
    shards: Array.from({ length: numShards }, (_, rank) => ({
      rank,
      secondsPerPair: 1e-4 * (slowdown[rank] ?? 1),
      secondsPerExpert: 0,
      rttSeconds: 1e-4,
      bytesPerSecond: 1e9,
      memoryBytes: slots * LAYERS,
      loadSecondsPerByte: 1e-9,
      draining: false,
    })),
    router: { secondsPerHop: 1e-5, secondsPerRow: 1e-6, rowBytesOut: 4096, rowBytesIn: 8192 },
    windowTokens: 2048,
    stepTokens: 64,
    moveBytes: Infinity,
  };
}

describe("a replay of recorded routing", () => {
  it("finds the planner faster than EPLB with the same memory, and EPLB faster than static runs", () => {
    const results = new Map(
      replay(firstLayers("law"), clusterOf(8, 10)).map((result) => [result.policy, result]),
    );
    const seconds = (policy: "static" | "eplb" | "ours") => results.get(policy)?.meanSeconds ?? NaN;
    assert.ok(seconds("ours") < seconds("eplb"), `${seconds("ours")} ${seconds("eplb")}`);
    assert.ok(seconds("eplb") < seconds("static"), `${seconds("eplb")} ${seconds("static")}`);
    assert.equal(results.get("static")?.movedBytes, 0);
    for (const { p99Seconds, meanSeconds, imbalance } of results.values()) {
      assert.ok(p99Seconds >= meanSeconds);
      assert.ok(imbalance > 0);
    }
  });

  it("leaves EPLB out where its equal slots have no room for all experts", () => {
    const cluster = clusterOf(8, 10);
    const shards = cluster.shards.map((shard) =>
      shard.rank === 0 ? { ...shard, memoryBytes: 0 } : { ...shard, memoryBytes: 30 * LAYERS },
    );
    const policies = replay(firstLayers("intent"), { ...cluster, shards }).map((one) => one.policy);
    assert.deepEqual(policies, ["static", "ours"]);
  });

  it("gives the slower of two shards less to do", () => {
    const results = replay(firstLayers("intent"), clusterOf(2, 48, [1, 3]));
    const [still, , ours] = results.map(({ meanSeconds }) => meanSeconds);
    // Evenly split, the slow one takes 3 / 2 of what both would need together at their own pace.
    assert.ok(ours < 0.7 * still, `${ours} of ${still}`);
  });
});

describe("a replay with a shard that is draining", () => {
  const draining = (cluster: ReplayCluster, rank: number): ReplayCluster => ({
    ...cluster,
    shards: cluster.shards.map((one) => Object.assign({}, one, { draining: one.rank === rank })),
  });

  it("re-homes its experts with the first plan, and is as fast as without it from then on", () => {
    const cluster = clusterOf(4, 24);
    const there = replay(firstLayers("law"), draining(cluster, 3));
    const shards = cluster.shards.filter(({ rank }) => rank !== 3);
    const gone = replay(firstLayers("law"), { ...cluster, shards });
    for (const [i, { policy, meanSeconds, movedBytes }] of there.entries()) {
      const of = gone[i].meanSeconds;
      // Static runs and EPLB are the same; the planner comes from another placement.
      const apart = policy === "ours" ? 0.03 : 1e-9;
      assert.ok(Math.abs(meanSeconds / of - 1) < apart, `${policy}: ${meanSeconds}, ${of} without`);
      assert.ok(movedBytes >= (LAYERS * numExperts) / 4, `${policy}: ${movedBytes}`);
    }
  });
});

it("a replay from nothing counts no loads of the planner's first placement, and moves less than one from static runs", () => {
  const [trace, cluster] = [firstLayers("law"), clusterOf(8, 10)];
  const ours = (fromNothing: boolean) => replay(trace, { ...cluster, fromNothing }).at(-1)!;
  const [afresh, fromRuns] = [ours(true), ours(false)];
  assert.ok(fromRuns.movedBytes > 0);
  assert.ok(afresh.movedBytes < fromRuns.movedBytes, `${afresh.movedBytes}`);
  assert.ok(afresh.meanSeconds < 1.02 * fromRuns.meanSeconds, `${afresh.meanSeconds}`);
});

describe("switchyard plan --trace", () => {
  const dir = mkdtempSync(join(tmpdir(), "switchyard-trace-"));
  after(() => rmSync(dir, { recursive: true, force: true }));
  // The tiny model's MoE layers, experts and top-k.
  const shape = [256, 3, 4];

  const writeTrace = (name: string, dims: readonly number[], id: (i: number) => number): string => {
    const count = dims.reduce((product, one) => product * one, 1);
    const header = JSON.stringify({
      topk_ids: { dtype: "U8", shape: dims, data_offsets: [0, count] },
    });
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(header.length));
    const path = join(dir, name);
    const ids = Uint8Array.from({ length: count }, (_, i) => id(i));
    writeFileSync(path, Buffer.concat([length, Buffer.from(header), ids]));
    return path;
  };
  const plan = (...argv: readonly string[]) =>
    runCommand("deploy/switchyard.ts", ["plan", "--model", TINY_MODEL, ...argv]);

  it("prints a line for each policy, and JSON where asked for", async () => {
    const trace = writeTrace("good.safetensors", shape, (i) => (i % 4) * 3 + (i % 3));
    const flags = ["--trace", trace, "--shards", "2", "--window", "64", "--tokens-per-step", "16"];
    const fewer = [...flags, "--memory", "9", "--without", "1", "--attention-ms", "2.5", "--json"];
    const runs = [flags, [...flags, "--json"], fewer, [...flags, "--draining", "1"]];
    const [text, json, without, noRoom] = await Promise.all(runs.map((argv) => plan(...argv)));
    assert.equal(text.code, 0, text.stderr);
    assert.match(text.stdout, /TPOT +p99 +MoE layers/);
    assert.match(text.stdout, /^TPOT without attention: --attention-ms/m);
    const one = JSON.parse(without.stdout) as ReplayReport;
    assert.equal(one.shards, 1, without.stderr);
    assert.equal(one.attentionFrom, "given");
    for (const { meanSeconds, p99Seconds, meanTpotSeconds, p99TpotSeconds } of one.results) {
      assert.equal(meanTpotSeconds, meanSeconds + 0.0025);
      assert.equal(p99TpotSeconds, p99Seconds + 0.0025);
    }
    assert.match(noRoom.stderr, /all experts take \d+ bytes .*; 1 shard offers \d+ bytes/);
    for (const policy of ["static", "eplb", "ours"])
      assert.match(text.stdout, new RegExp(`^${policy} `, "m"));
    const { tokens, results } = JSON.parse(json.stdout) as {
      readonly tokens: number;
      readonly results: readonly { readonly meanSeconds: number }[];
    };
    assert.equal(tokens, 256);
    assert.ok(results.every(({ meanSeconds }) => meanSeconds > 0));
  });

  it("counts experts in the bytes that the model's switchyard.json gives them, and refuses a rank too many and a link of nothing", async () => {
    const model = join(dir, "model");
    mkdirSync(model);
    copyFileSync(join(TINY_MODEL, "config.json"), join(model, "config.json"));
    const bits = Object.fromEntries([0, 1, 2].map((layer) => [layer, 8]));
    writeFileSync(join(model, "switchyard.json"), JSON.stringify({ expertsBits: bits }));
    const trace = writeTrace("bytes", shape, (i) => (i % 4) * 3 + (i % 3));
    const sizes = { shards: 2, redundancy: 0.25, window: 64, tokensPerStep: 16 };
    const moved = async (dir: string, others: Partial<ReplaySettings> = {}) => {
      const { results } = await runReplay({
        trace,
        model: dir,
        ...sizes,
        without: [],
        draining: [],
        fromNothing: false,
        attentionMs: undefined,
        expertsBits: "auto",
        expertsGroup: "32",
        memoryBytes: undefined,
        secondsPerPair: undefined,
        rttSeconds: undefined,
        bytesPerSecond: undefined,
        ...others,
      });
      return results[1].movedBytes;
    };
    const [asStored, asOverlaid] = [await moved(TINY_MODEL), await moved(model)];
    assert.ok(asStored > 0 && asOverlaid < 0.7 * asStored, `${asOverlaid} of ${asStored}`);
    for (const [others, said] of [
      [{ draining: [2] }, /--draining 2: ranks of --shards 2 are 0 to 1/],
      [{ bytesPerSecond: [undefined, 0] }, /--bandwidth 1=0: expected at least 1 byte per second/],
    ] as const) {
      await assert.rejects(moved(TINY_MODEL, others), said);
    }
  });

  it("refuses what only a router's plan has a place for, and without a trace what only a replay has", async () => {
    const flags = ["--policy=eplb", "--min-copies=2", "--move-bytes=1", "--steps=1", "--load=any"];
    const { code, stderr } = await plan("--trace", "any", ...flags, "--without=local");
    assert.equal(code, 1);
    assert.match(
      stderr,
      /^switchyard plan: --min-copies, --policy, --move-bytes, --steps, --load, --without local: of a router's plan/,
    );
    const alone = await plan("--shards", "4", "--window=64");
    assert.equal(alone.code, 1);
    assert.match(
      alone.stderr,
      /^switchyard plan: --shards, --window: of a replay, which --trace asks/,
    );
  });

  const MISTAKES: readonly [what: string, argv: () => readonly string[], said: RegExp][] = [
    [
      "of another shape",
      () => ["--trace", writeTrace("a", [8, 2, 4], () => 0)],
      /is \[8, 2, 4\], the model's is \[tokens, 3, 4\]/,
    ],
    [
      "with an expert too many",
      () => ["--trace", writeTrace("b", [8, 3, 4], () => 99)],
      /token 0 chose expert 99, the model has 12/,
    ],
    [
      "that is too short",
      () => ["--trace", writeTrace("c", [8, 3, 4], () => 0)],
      /8 tokens, fewer than two windows/,
    ],
    ["that is not there", () => ["--trace", join(dir, "none")], /no such file/],
  ];
  for (const [what, argv, said] of MISTAKES) {
    it(`refuses a trace ${what} by one clear line`, async () => {
      const { code, stderr } = await plan(...argv());
      assert.equal(code, 1);
      assert.match(stderr, said);
      assert.equal(stderr.trim().split("\n").length, 1, stderr);
    });
  }
});
