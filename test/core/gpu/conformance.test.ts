import assert from "node:assert/strict";
import { after, test } from "node:test";

import { checkConformance, checkedSlots, ConformanceError } from "../../../core/gpu/conformance.ts";
import { openGpu } from "../../../core/gpu/device.ts";
import { type ExpertKernels, plainExpertKernels } from "../../../core/gpu/expert-kernels.ts";

const gpu = await openGpu();
after(() => gpu.close());

const SIZES = {
  hiddenSize: 192,
  expertIntermediateSize: 64,
  activation: { kind: "clampedSwiglu", alpha: 1.702, limit: 7 },
  expertBias: true,
} as const;

test("kernels over matrices with scales and without conform, with an error that f32 explains", async () => {
  const all = plainExpertKernels(SIZES);
  const f16 = await checkConformance(gpu, SIZES, ["f16"], all);
  assert.equal(f16.kernels.length, 2 * 3, "two halves and combine, per regime");
  const first = { ...all, regimes: all.regimes.slice(0, 1) };
  const int4 = await checkConformance(gpu, SIZES, ["int4-g32"], first);
  for (const { tolerance } of [f16, int4]) {
    assert.ok(tolerance > 0 && tolerance < 2e-6, String(tolerance));
  }
});

test("a model of which one binding takes one expert is checked on one", async () => {
  const mixtral = { ...SIZES, hiddenSize: 4096, expertIntermediateSize: 14336 };
  const slots = [128, 256].map((mib) => checkedSlots(mixtral, "int8", mib * 2 ** 20));
  assert.deepEqual(slots, [1, 2]);
  const small = { ...gpu, maxBindingBytes: 2 * 64 * 192 };
  assert.equal(checkedSlots(SIZES, "int8", small.maxBindingBytes), 1);
  const found = await checkConformance(small, SIZES, ["int8"], plainExpertKernels(SIZES));
  assert.ok(found.tolerance > 0 && found.tolerance < 2e-6, String(found.tolerance));
});

test("a kernel that is off by a thousandth is refused by name, error and limit", async () => {
  const good = plainExpertKernels(SIZES);
  const broken: ExpertKernels = {
    ...good,
    regimes: good.regimes.slice(0, 1).map((regime) => ({
      group: regime.group,
      limit: regime.limit,
      bank: (format) => {
        const { gateUp, down } = regime.bank(format);
        const wgsl = down.wgsl.replace("= acc[r]", "= 1.001 * acc[r]");
        assert.notEqual(wgsl, down.wgsl);
        return { gateUp, down: { ...down, wgsl } };
      },
    })),
  };
  await assert.rejects(checkConformance(gpu, SIZES, ["f16"], broken), (error) => {
    assert.ok(error instanceof ConformanceError, String(error));
    assert.match(error.message, /kernel expert down 64→192 f16 .*error \d.*at most 0\.000002/);
    return true;
  });
});
