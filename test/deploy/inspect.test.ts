import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { after, test } from "node:test";

import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { allIn, type ExpertFormat } from "../../core/expert-format.ts";
import { largestLayerBytes } from "../../core/expert-formats.ts";
import { steadyMemory } from "../../core/expert-memory.ts";
import { createGpuExpertDevice } from "../../core/gpu/expert-device.ts";
import { largestPart } from "../../core/gpu/expert-banks.ts";
import { openGpu } from "../../core/gpu/device.ts";
import { openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { planInspection } from "../../deploy/inspect-plan.ts";
import { runnerLimits } from "../../router-service/engine/runner-limits.ts";
import { DEMO_MODEL } from "../../bench/rig/cluster.ts";
import { countBuffers } from "../support/counted-buffers.ts";
import { gpuRunnerFactory } from "../support/gpu-runner-factory.ts";
import { runCommand } from "../support/run-command.ts";
import { temporaryDir } from "../core/model/checkpoint/safetensors-writer.ts";

const checkpoint = await openCheckpoint(DEMO_MODEL);
after(() => checkpoint.close());
const { config } = checkpoint;
const limits = runnerLimits({ maxNumSeqs: 4, maxNumBatchedTokens: 64, kvBlocks: 16 }, config);
const GIB = 2 ** 30;

function plan(
  shards: number,
  experts: ExpertFormat,
  memoryBytes = GIB,
  bindingBytes = Number.POSITIVE_INFINITY,
  holdsTwice = false,
) {
  const settings = { config, weights: "f16", formatOf: allIn(experts), limits, shards } as const;
  return planInspection({ ...settings, memoryBytes, bindingBytes, isLimit: true, holdsTwice });
}

/** `actual` is within 5 % of what was predicted. */
function assertPredicted(actual: number, predicted: number): void {
  assert.ok(Math.abs(actual / predicted - 1) < 0.05, `${actual} bytes, predicted ${predicted}`);
}

test("one process on a GPU allocates what was predicted, within 5 %", async () => {
  const gpu = await openGpu();
  const allocated = countBuffers(gpu);
  const runner = await gpuRunnerFactory(gpu, { weights: "f16", wire: "f16" })(checkpoint, limits);
  assertPredicted(allocated(), plan(0, "f16").router.total);
  runner.close();
  gpu.close();
});

test("a shard on a GPU allocates what was predicted, within 5 %", async () => {
  const gpu = await openGpu();
  const allocated = countBuffers(gpu);
  const device = await createGpuExpertDevice(gpu, config, ["f16"]);
  for (const layer of moeLayers(config))
    device.allocate(layer, Array(config.numExperts / 2).fill("f16"));
  const [shard] = plan(2, "f16").shards;
  assert.equal(device.residentBytes(), shard.residentBytes);
  assertPredicted(allocated(), shard.total);
  device.close();
  gpu.close();
});

test("a shard holds as many bytes as were predicted, in every format of experts", async () => {
  for (const format of ["f32", "f16", "int8", "int4-g32", "int4-g64", "mxfp4"] as const) {
    const [shard] = plan(3, format).shards;
    const device = createCpuExpertDevice(config);
    for (const layer of moeLayers(config)) {
      device.allocate(layer, Array(shard.expertsPerLayer).fill(format));
      device.load(layer, 0, await readExpert(checkpoint, layer, 0));
    }
    assert.equal(device.residentBytes(), shard.residentBytes, format);
    device.close();
  }
});

test("the fewest shards that do are found, and one less would not", () => {
  const one = plan(1, "int8").shards[0];
  const half = one.buffers + one.residentBytes / 2;
  assert.equal(plan(0, "int8", one.total).shardsNeeded, 1);
  assert.equal(plan(0, "int8", one.total - 1).shardsNeeded, 2);
  assert.equal(plan(0, "int8", half).shardsNeeded, 2);
  assert.deepEqual(
    plan(2, "int8", half).shards.map(({ fits }) => fits),
    [true, true],
  );
  assert.equal(plan(0, "int8", one.buffers).shardsNeeded, undefined);
});

test("where moves take a layer's slots twice they stay free, as a shard and a router with a limit keep them", () => {
  const infinity = Number.POSITIVE_INFINITY;
  const { router, shards } = plan(2, "int8", GIB, infinity, true);
  const [{ residentBytes, buffers, reserve, total }] = shards;
  const largest = largestLayerBytes(config, allIn("int8"));
  assert.equal(reserve, largest);
  assert.equal(total, residentBytes + buffers + reserve);
  assert.equal(steadyMemory(total - buffers, largest), residentBytes);
  const fits = (memory: number) => plan(2, "int8", memory, infinity, true).shards[0].fits;
  assert.deepEqual([fits(total), fits(total - 1)], [true, false]);
  assert.equal(router.leftForExperts, GIB - router.total - buffers - largest);
  assert.equal(plan(2, "int8", router.total - 1).router.leftForExperts, undefined);
});

test("uneven shares are those of the router's first placement", () => {
  assert.deepEqual(
    plan(5, "f16").shards.map(({ expertsPerLayer }) => expertsPerLayer),
    [13, 13, 13, 13, 12],
  );
});

test("narrower experts take less, and more shards hold less each", () => {
  const bytes = (["f32", "f16", "int8", "int4-g32", "int4-g128"] as const).map(
    (format) => plan(1, format).shards[0].residentBytes,
  );
  assert.deepEqual(
    bytes,
    bytes.toSorted((a, b) => b - a),
  );
  assert.equal(plan(2, "f16").shards[1].residentBytes * 2, plan(1, "f16").shards[0].residentBytes);
});

test("a buffer that no binding of the adapter takes does not fit, however much memory there is", () => {
  // A layer's cache has 16 · 16 positions of 512 bytes.
  const layerCache = 16 * 16 * 512;
  const tight = plan(2, "f16", GIB, layerCache - 1);
  assert.equal(tight.router.fits, false);
  assert.ok(tight.router.tooLarge.some(({ label }) => label.startsWith("KV cache of layer 0")));
  const expert = largestPart(config, "f16");
  const small = plan(2, "f16", GIB, expert - 1);
  assert.equal(small.shards[0].fits, false);
  assert.equal(small.shardsNeeded, undefined);
  assert.deepEqual(small.expertsTooLarge, [
    { label: "one expert's gate and up in f16", bytes: expert },
  ]);
  assert.equal(plan(2, "f16", GIB, expert).shardsNeeded, 1);
  assert.equal(plan(2, "int8", GIB, expert - 1).shardsNeeded, 1);
});

function inspect(...args: readonly string[]) {
  return runCommand("deploy/switchyard.ts", ["inspect", ...args]);
}

test("switchyard inspect DIR tells family, parameters, parts and shards, as text and as JSON", async () => {
  const flags = ["--shards=2", "--experts-bits=4", "--memory=0.5"];
  const text = await inspect(DEMO_MODEL, ...flags);
  assert.equal(text.code, 0, text.stderr);
  assert.match(text.stdout, /^demo-moe: qwen2_moe, 22\.13 M parameters, 4\.43 M read per token\n/u);
  assert.match(text.stdout, /\n {2}KV cache +128 MiB {2}3\.00 KiB per token/u);
  assert.match(
    text.stdout,
    /\n {2}rank 1 .* 32 of 64 experts of each layer: 5\.06 MiB resident; fits in 512 MiB \(--memory\)\n/u,
  );
  assert.match(text.stdout, /\n1 shard of 512 MiB would hold all experts in int4-g32\n$/u);

  const json = await inspect("--json", ...flags, DEMO_MODEL);
  const report = JSON.parse(json.stdout) as {
    model: { parameters: { total: number } };
    shards: { residentBytes: number }[];
    shardsNeeded: number;
  };
  assert.equal(report.model.parameters.total, 22_125_568);
  assert.equal(report.shards.length, 2);
  assert.equal(report.shardsNeeded, 1);
});

test("inspect keeps experts of an MXFP4 checkpoint in MXFP4 unless told otherwise, by its config where there are no weights", async (t) => {
  const golden = join(import.meta.dirname, "../goldens/gpt_oss");
  const dir = await temporaryDir(t);
  await cp(join(golden, "config.json"), join(dir, "config.json"));
  for (const [model, flags, experts] of [
    [golden, [], "mxfp4"],
    [dir, [], "mxfp4"],
    [golden, ["--experts-bits=16"], "f16"],
    [join(import.meta.dirname, "../goldens/variants/gpt_oss_bf16"), [], "f16"],
  ] as const) {
    const { code, stdout, stderr } = await inspect(model, "--memory=1", "--shards=1", ...flags);
    assert.equal(code, 0, stderr);
    assert.match(stdout, new RegExp(`\\n1 shard, experts in ${experts}, `, "u"), model);
  }
});

test("inspect tells what the adapter's largest binding leaves of context and experts", async (t) => {
  const dir = await temporaryDir(t);
  await cp(join(DEMO_MODEL, "config.json"), join(dir, "config.json"));
  await writeFile(join(dir, "switchyard.json"), JSON.stringify({ expertsBits: { 1: 4 } }));
  const flags = ["--memory=1", "--max-num-batched-tokens=32", "--max-num-seqs=1"];
  const limited = await inspect(dir, ...flags, "--max-binding=0.25");
  assert.match(
    limited.stdout,
    /longest context 512 of 2048, limited by the adapter's largest binding\n/u,
  );
  assert.match(
    limited.stdout,
    /does not fit: logits takes .* KiB.*, a binding of the adapter at most 256 KiB\n/u,
  );
  assert.match(limited.stdout, /would hold all experts in f16, others by switchyard\.json\n$/u);
  const { stdout } = await inspect(dir, ...flags, "--max-binding=0.01");
  assert.match(
    stdout,
    /no number of shards would do: one expert's gate and up in f16 takes .*10\.2 KiB\n$/u,
  );
});

test("inspect needs no weights, and says what it can not read", async (t) => {
  const dir = await temporaryDir(t);
  const missing = await inspect(dir, "--memory=1");
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /^switchyard inspect: .*config\.json: no such file/u);
  await cp(join(DEMO_MODEL, "config.json"), join(dir, "config.json"));
  const { code, stdout, stderr } = await inspect(dir, "--memory=1");
  assert.equal(code, 0, stderr);
  assert.match(stdout, /files +no weights here: sizes by config\.json\n/u);
});
