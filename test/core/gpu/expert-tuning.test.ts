import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";

import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { openGpu } from "../../../core/gpu/device.ts";
import { candidatesFor } from "../../../core/gpu/expert-candidates.ts";
import { createGpuExpertDevice } from "../../../core/gpu/expert-device.ts";
import { densityOf, plainExpertKernels } from "../../../core/gpu/expert-kernels.ts";
import {
  dropKeptExperts,
  keptExperts,
  measuredExperts,
  nearestPoint,
  tunedKernels,
} from "../../../core/gpu/expert-tuning.ts";
import type { TunedPoint } from "../../../core/gpu/tuning-file.ts";
import { assertClose, SMALL_EXPERTS as SIZES } from "../../support/gpu-fixture.ts";
import { testExpert, testRun } from "../../../bench/rig/expert-reference.ts";

const gpu = await openGpu();
const directory = await mkdtemp(join(tmpdir(), "switchyard-tuning-"));
after(async () => {
  gpu.close();
  await rm(directory, { recursive: true });
});

const point = (pairsPerSlot: number): TunedPoint => ({
  pairsPerSlot,
  candidate: { kind: "plain", rows: 1 },
  seconds: 1,
});

test("a step takes the choice measured at the density nearest to its own", () => {
  const points = [1, 4, 16, 64].map(point);
  const choices = [0.2, 1, 1.9, 2.1, 5, 9, 100, 5000].map((d) => nearestPoint(points, d));
  assert.deepEqual(choices, [0, 0, 0, 1, 1, 2, 3, 3]);
  const step = { tokens: 1, samples: 0, topK: 6, numSlots: 64 };
  assert.equal(densityOf(step), 1, "one token's experts have one pair each");
  assert.equal(densityOf({ ...step, tokens: 512 }), 48);
  assert.equal(densityOf({ ...step, pairsPerSlot: 6 }), 6, "what was counted goes before");
  const { choose } = plainExpertKernels(SIZES);
  const rest = { tokens: 8, samples: 0, topK: 4, numSlots: 64 };
  assert.equal(choose(rest), 0);
  assert.equal(choose({ ...rest, pairsPerSlot: 8 }), 1, "slots at rest do not scatter the rows");
});

test("a candidate that is the choice at several densities is compiled once", () => {
  const other: TunedPoint = { ...point(16), candidate: { kind: "plain", rows: 4 } };
  const { regimes, choose } = tunedKernels(SIZES, [point(1), point(4), other, point(64)]);
  assert.deepEqual(
    regimes.map(({ group }) => group),
    [undefined, 4],
  );
  const step = (tokens: number) => ({ tokens, samples: 0, topK: 2, numSlots: 2 });
  assert.deepEqual(
    [1, 4, 16, 64].map((tokens) => choose(step(tokens))),
    [0, 0, 1, 0],
  );
});

test("an adapter without subgroups, f16 and tensor cores has candidates for few and for many rows", () => {
  const offers = {
    shaderF16: false,
    subgroups: false,
    timestamps: false,
    software: false,
    subgroupMatrix: [],
    minSubgroupSize: 1,
    maxSubgroupSize: 1,
  };
  const limits = { offers, workgroupBytes: 16384, workgroupThreads: 256 };
  const few = candidatesFor(1, limits);
  assert.ok(few.some(({ kind }) => kind === "matvec"));
  for (const one of few) {
    if (one.kind === "matvec") assert.equal(one.shape.reduce, "workgroup");
  }
  const many = new Set(candidatesFor(64, limits).map(({ kind }) => kind));
  assert.deepEqual(many, new Set(["gemm", "plain"]));
});

test("a device with tuned kernels gives the sums of the plain loops in both regimes", async () => {
  const points: TunedPoint[] = [
    {
      pairsPerSlot: 1,
      candidate: {
        kind: "matvec",
        rows: 1,
        shape: { threads: 64, columns: 2, reduce: "workgroup" },
      },
      seconds: 1,
    },
    {
      pairsPerSlot: 16,
      candidate: { kind: "gemm", shape: { threads: [8, 8], block: [2, 2], tile: "f32" } },
      seconds: 1,
    },
  ];
  const formats = ["f16", "f16", "f16"] as const;
  const kernels = tunedKernels(SIZES, points);
  const tuned = await createGpuExpertDevice(gpu, SIZES, ["f16"], { kernels });
  const oracle = createCpuExpertDevice(SIZES);
  for (const device of [tuned, oracle]) {
    device.allocate(0, formats);
    for (const slot of formats.keys()) device.load(0, slot, testExpert(SIZES, slot));
  }
  for (const [numRows, regime] of [
    [1, 0],
    [40, 1],
  ] as const) {
    const topK = 2;
    const step = { tokens: numRows, samples: 0, topK, numSlots: formats.length };
    assert.equal(kernels.choose(step), regime);
    const { rows, slots, weights } = testRun(SIZES.hiddenSize, numRows, topK, formats.length);
    const actual = await tuned.run(0, rows, slots, weights);
    assertClose(actual, await oracle.run(0, rows, slots, weights), 1e-5);
  }
  tuned.close();
  oracle.close();
});

test("kernels are measured once per adapter and widths; a spoiled file is measured anew", async () => {
  // No time: the first candidate of each density alone.
  const bounds = { seconds: 0, deadlineSeconds: 60, now: () => performance.now() };
  const tune = async () => {
    const kept = await keptExperts(gpu, SIZES, "f16", directory);
    if (kept !== undefined) return { ...kept, source: "kept" };
    const measured = await measuredExperts(gpu, SIZES, "f16", directory, bounds);
    return { ...measured, source: "measured" };
  };
  const first = await tune();
  assert.equal(first.source, "measured");
  assert.deepEqual(Object.keys(first.names), ["1", "4", "16", "64"]);
  const again = await tune();
  assert.deepEqual([again.source, again.names], ["kept", first.names]);
  const [file] = await readdir(directory);
  const path = join(directory, file);
  const kept = await readFile(path, "utf8");
  for (const spoiled of [
    "",
    kept.slice(0, 100),
    kept.replace('"version": 1', '"version": 0'),
    kept.replace("llvmpipe", "other"),
    // What is no candidate at this density here, as kernels for another adapter's features are not.
    kept.replace('"rows": 1', '"rows": 4'),
  ]) {
    await writeFile(path, spoiled);
    assert.equal((await tune()).source, "measured");
  }
  assert.equal((await tune()).source, "kept");
  await dropKeptExperts(gpu, SIZES, "f16", directory);
  assert.deepEqual(await readdir(directory), [], "choices that were refused are gone");
  await dropKeptExperts(gpu, SIZES, "f16", directory);
  assert.equal((await tune()).source, "measured");
});

test("where the deadline is over nothing is measured and nothing kept: plain kernels compute", async () => {
  const bounds = { seconds: 3, deadlineSeconds: 0, now: () => performance.now() };
  const { names } = await measuredExperts(gpu, SIZES, "f32", directory, bounds);
  assert.deepEqual(names, { 1: "plain ×1", 4: "plain ×4", 16: "plain ×4", 64: "plain ×4" });
  assert.equal(await keptExperts(gpu, SIZES, "f32", directory), undefined);
});
