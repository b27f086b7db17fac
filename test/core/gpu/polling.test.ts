import assert from "node:assert/strict";
import { test } from "node:test";

// Counts what reaches Node's own setImmediate; polling.ts takes hold of it when it is loaded.
const nodes = globalThis.setImmediate;
let immediates = 0;
globalThis.setImmediate = Object.assign((...args: Parameters<typeof nodes>) => {
  immediates++;
  return nodes(...args);
}, nodes);
const { allocate, openGpu, READ_BACK, STORAGE } = await import("../../../core/gpu/device.ts");
const { compileKernel } = await import("../../../core/gpu/kernel.ts");
const { mapForReading } = await import("../../../core/gpu/polling.ts");

test("a long wait for the GPU asks a few times a millisecond and leaves the thread to others", async (t) => {
  const gpu = await openGpu();
  t.after(() => gpu.close());
  const output = allocate(gpu, "output", 4, STORAGE);
  const staging = allocate(gpu, "staging", 4, READ_BACK);
  const slow = await compileKernel<undefined>(gpu, {
    label: "slow",
    wgsl: /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> output: array<u32>;
@compute @workgroup_size(1)
fn main() {
  var value = output[0];
  for (var i = 0u; i < 50000000u; i++) { value = value * 1664525u + 1013904223u; }
  output[0] = value;
}`,
    grid: () => [1, 1, 1],
  });
  const encoder = gpu.device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  slow.bind(output).encode(pass, undefined);
  pass.end();
  encoder.copyBufferToBuffer(output, 0, staging, 0, 4);
  gpu.device.queue.submit([encoder.finish()]);

  let turns = 0;
  const timer = setInterval(() => turns++, 2);
  immediates = 0;
  const startedAt = performance.now();
  await mapForReading(staging, 4);
  const ms = performance.now() - startedAt;
  clearInterval(timer);
  const [value] = new Uint32Array(staging.getMappedRange(0, 4));

  let expected = 0n;
  // 50 000 000 steps of x → a·x + c at once, by squaring.
  for (let n = 50_000_000n, a = 1664525n, c = 1013904223n; n > 0n; n >>= 1n) {
    if (n & 1n) expected = BigInt.asUintN(32, a * expected + c);
    c = BigInt.asUintN(32, c * (a + 1n));
    a = BigInt.asUintN(32, a * a);
  }
  assert.equal(BigInt(value), expected);
  assert.ok(ms > 20, `the wait took only ${ms} ms`);
  assert.ok(immediates < 100 + 12 * ms, `${immediates} questions in ${ms} ms`);
  assert.ok(turns > ms / 20, `${turns} turns of a 2 ms timer in ${ms} ms`);
});

test("setImmediate serves everyone else as before", async () => {
  const { promise, resolve } = Promise.withResolvers<unknown[]>();
  setImmediate((...args: unknown[]) => resolve(args), 1, "two");
  assert.deepEqual(await promise, [1, "two"]);
  clearImmediate(setImmediate(() => assert.fail("it was cleared")));
  const { promisify } = await import("node:util");
  assert.equal(await promisify(setImmediate)("value"), "value");
});

test("a promise that setImmediate resolves does not wait as the GPU's questions do", async () => {
  const rounds: number[] = [];
  for (let round = 0; round < 10; round++) {
    const startedAt = performance.now();
    for (let i = 0; i < 100; i++) await new Promise((resolve) => setImmediate(resolve));
    rounds.push(performance.now() - startedAt);
  }
  // With a sleep before each it were 10 ms at least.
  assert.ok(Math.min(...rounds) < 8, `100 turns take ${rounds.join(", ")} ms`);
});
