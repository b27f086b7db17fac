import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

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

/** A device with a kernel that takes as many steps of x → a·x + c as it is told. */
async function slowDevice(t: TestContext) {
  const gpu = await openGpu();
  t.after(() => gpu.close());
  const values = allocate(gpu, "values", 8, STORAGE);
  const staging = allocate(gpu, "staging", 4, READ_BACK);
  const kernel = await compileKernel<undefined>(gpu, {
    label: "slow",
    wgsl: /* wgsl */ `
@group(0) @binding(0) var<storage, read_write> values: array<u32>;
@compute @workgroup_size(1)
fn main() {
  var value = 0u;
  for (var i = 0u; i < values[1]; i++) { value = value * 1664525u + 1013904223u; }
  values[0] = value;
}`,
    grid: () => [1, 1, 1],
  });
  const bound = kernel.bind(values);
  return {
    /** Runs the kernel; the result, how long it was waited for and how often the GPU was asked meanwhile. */
    async run(steps: number, rows: number) {
      gpu.device.queue.writeBuffer(values, 4, Uint32Array.of(steps));
      const encoder = gpu.device.createCommandEncoder();
      const pass = encoder.beginComputePass();
      bound.encode(pass, undefined);
      pass.end();
      encoder.copyBufferToBuffer(values, 0, staging, 0, 4);
      gpu.device.queue.submit([encoder.finish()]);
      immediates = 0;
      const startedAt = performance.now();
      await mapForReading(staging, 4, rows);
      const ms = performance.now() - startedAt;
      const [value] = new Uint32Array(staging.getMappedRange(0, 4));
      staging.unmap();
      return { value, ms, questions: immediates };
    },
  };
}

/** `n` steps of x → a·x + c from 0, by squaring. */
function afterSteps(n: bigint): number {
  let expected = 0n;
  for (let a = 1664525n, c = 1013904223n; n > 0n; n >>= 1n) {
    if (n & 1n) expected = BigInt.asUintN(32, a * expected + c);
    c = BigInt.asUintN(32, c * (a + 1n));
    a = BigInt.asUintN(32, a * a);
  }
  return Number(expected);
}

test("a long wait for the GPU asks a few times a millisecond and leaves the thread to others", async (t) => {
  const device = await slowDevice(t);
  let turns = 0;
  const timer = setInterval(() => turns++, 2);
  const { value, ms, questions } = await device.run(50_000_000, 1);
  clearInterval(timer);
  assert.equal(value, afterSteps(50_000_000n));
  assert.ok(ms > 20, `the wait took only ${ms} ms`);
  assert.ok(questions < 100 + 20 * ms, `${questions} questions in ${ms} ms`);
  assert.ok(turns > ms / 20, `${turns} turns of a 2 ms timer in ${ms} ms`);
});

test("a wait like the last ones begins to ask shortly before its end; one of another size does not wait for that", async (t) => {
  const device = await slowDevice(t);
  const known: Awaited<ReturnType<typeof device.run>>[] = [];
  for (let i = 0; i < 8; i++) known.push(await device.run(20_000_000, 64));
  const [first, ...later] = known;
  const share = ({ questions, ms }: typeof first) => questions / ms;
  const least = Math.min(...later.slice(3).map(share));
  assert.ok(least < share(first) / 2, `questions per ms: ${known.map(share).join(", ")}`);
  const short: number[] = [];
  for (let i = 0; i < 3; i++) short.push((await device.run(1000, 1)).ms);
  assert.ok(Math.min(...short) < first.ms / 4, `${short.join(", ")} ms after ${first.ms} ms`);
});

test("short waits do not grow by being expected", async (t) => {
  const device = await slowDevice(t);
  const times: number[] = [];
  for (let i = 0; i < 120; i++) times.push((await device.run(1000, 1)).ms);
  const [first, last] = [times.slice(0, 40), times.slice(-40)].map((some) => Math.min(...some));
  assert.ok(last < 2 * first + 0.1, `${first} ms at first, ${last} ms in the end`);
});

test("long waits for two devices at once both end", async (t) => {
  const devices = [await slowDevice(t), await slowDevice(t)];
  for (let i = 0; i < 7; i++) {
    const both = await Promise.all(devices.map((device) => device.run(5_000_000, 64)));
    for (const { value } of both) assert.equal(value, afterSteps(5_000_000n));
  }
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
