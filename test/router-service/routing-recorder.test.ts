import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { promisify } from "node:util";

import type { ReplayReport } from "../../deploy/replay-command.ts";
import { readTrace } from "../../deploy/routing-trace.ts";
import { startRoutingRecorder } from "../../router-service/routing-recorder.ts";
import { complete } from "../../bench/rig/api.ts";
import { startCluster, TINY_MODEL } from "../../bench/rig/cluster.ts";
import { runCommand } from "../support/run-command.ts";
import { silentLogger } from "../support/shards.ts";

const dir = mkdtempSync(join(tmpdir(), "switchyard-recorder-"));
after(() => rmSync(dir, { recursive: true, force: true }));

/** A step whose token t chooses experts t and t + 1 in the first layer, t + 2 and t + 3 in the second. */
function stepOf(from: number, numTokens: number) {
  const layer = (more: number) => ({
    topK: 2,
    ids: Uint32Array.from({ length: numTokens * 2 }, (_, i) => from + (i >> 1) + more + (i % 2)),
    weights: new Float32Array(numTokens * 2),
  });
  const routing = new Map([1, 4].map((index, i) => [index, layer(2 * i)]));
  const now = performance.now();
  return { numTokens, routing, startedAt: now - 1e6, finishedAt: now + 1e6, sequences: [] };
}

for (const numExperts of [200, 300]) {
  test(`a recording has the tokens of all steps in order, up to its bound, with ${numExperts} experts`, async () => {
    const file = join(dir, `${numExperts}.safetensors`);
    const shape = { layers: [1, 4], numExperts, topK: 2 };
    const recorder = await startRoutingRecorder({ file, shape, maxTokens: 6, log: silentLogger });
    const { onStep } = recorder.observer;
    onStep(stepOf(190, 3));
    // A step without one of the layers is of no use.
    onStep({ ...stepOf(0, 1), routing: new Map([[1, stepOf(0, 1).routing.get(1)!]]) });
    onStep(stepOf(193, 2));
    onStep(stepOf(100, 5));
    onStep(stepOf(0, 5));
    await recorder.close();
    const trace = await readTrace(file, { numMoeLayers: 2, numExperts, topK: 2 });
    const expected = [190, 191, 192, 193, 194, 100].flatMap((t) => [t, t + 1, t + 2, t + 3]);
    assert.equal(trace.numTokens, 6);
    assert.deepEqual(Array.from(trace.ids), expected);
    assert.equal(trace.restMs, undefined, "no MoE layer was told of");
  });
}

test("a file that exists is not recorded over", async () => {
  const file = join(dir, "there");
  writeFileSync(file, "something");
  const shape = { layers: [1], numExperts: 4, topK: 1 };
  await assert.rejects(
    startRoutingRecorder({ file, shape, maxTokens: 6, log: silentLogger }),
    /--record-routing .*there: the file exists/,
  );
});

test("a recording whose disk is full says so once, and keeps the tokens that it has whole", async () => {
  const file = join(dir, "full");
  const recorder = new URL("../../router-service/routing-recorder.ts", import.meta.url);
  const script = `
    const { startRoutingRecorder } = await import(${JSON.stringify(recorder.href)});
    const say = ({ err, ...facts }, text) => console.log(JSON.stringify({ text, code: err?.code }));
    const log = { info: say, warn: say };
    const shape = { layers: [0, 1, 2, 3], numExperts: 8, topK: 8 };
    const recorder = await startRoutingRecorder({ file: ${JSON.stringify(file)}, shape, maxTokens: 64, log });
    const layer = { topK: 8, ids: new Uint32Array(40 * 8).fill(5) };
    recorder.observer.onStep({ startedAt: 0, finishedAt: 1, sequences: [], numTokens: 40, routing: new Map(shape.layers.map((one) => [one, layer])) });
    await recorder.close();`;
  // A block of 1024 bytes: the first write takes the half of the tokens, the next one none.
  const argv = [
    "-c",
    'ulimit -f 1; exec "$0" --input-type=module -e "$1"',
    process.execPath,
    script,
  ];
  const { stdout } = await promisify(execFile)("bash", argv, { timeout: 10_000 });
  assert.deepEqual(
    stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as object),
    [{ text: "routing is not recorded any more", code: "EFBIG" }],
  );
  const trace = await readTrace(file, { numMoeLayers: 4, numExperts: 8, topK: 8 });
  assert.equal(trace.numTokens, 0);
});

test("what a router on shards records, switchyard plan replays", async () => {
  const file = join(dir, "router.safetensors");
  const cluster = await startCluster({
    shards: 1,
    device: "cpu",
    routerFlags: ["--record-routing", file, "--record-tokens", "192"],
  });
  try {
    const prompts = Array.from({ length: 8 }, (_, n) =>
      Array.from({ length: 20 }, (__, i) => 3 + n * 20 + i),
    );
    await Promise.all(prompts.map((prompt) => complete(cluster.url, { prompt, max_tokens: 8 })));
  } finally {
    await cluster.close();
  }
  const argv = ["plan", "--model", TINY_MODEL, "--trace", file, "--shards", "2", "--json"];
  argv.push("--window", "64", "--tokens-per-step", "16");
  const { code, stdout, stderr } = await runCommand("deploy/switchyard.ts", argv);
  assert.equal(code, 0, stderr);
  const replayed = JSON.parse(stdout) as ReplayReport;
  // 8 × (20 + 7): more than the recording holds.
  assert.equal(replayed.tokens, 192);
  assert.ok(
    replayed.results.length === 3 && replayed.results.every(({ meanSeconds }) => meanSeconds > 0),
  );
  // What the router's steps took beside their MoE layers is in each token's time.
  assert.equal(replayed.attentionFrom, "recorded");
  assert.ok(replayed.attentionSeconds > 0 && replayed.attentionSeconds < 10);
});
