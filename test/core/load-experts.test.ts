import assert from "node:assert/strict";
import { test } from "node:test";

import type { ExpertSizes, ExpertWeights } from "../../core/expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../../core/expert-format.ts";
import { type ExpertLoad, loadExperts } from "../../core/load-experts.ts";
import { PackPool } from "../../core/packing/pack-pool.ts";
import { bytesOf } from "../../core/tensor.ts";
import { packExpert, WeightOverflowError } from "../../core/weights.ts";
import { testValues } from "../../bench/rig/expert-reference.ts";

const sizes: ExpertSizes = {
  hiddenSize: 64,
  expertIntermediateSize: 40,
  activation: { kind: "silu" },
  expertBias: false,
};

function expert(seed: number): ExpertWeights {
  const matrix = (rows: number, columns: number, at: number) => ({
    shape: [rows, columns],
    dtype: "F32" as const,
    bytes: bytesOf(testValues(rows * columns, 3 * seed + at)),
  });
  return { gate: matrix(40, 64, 0), up: matrix(40, 64, 1), down: matrix(64, 40, 2) };
}

function loads(count: number, format: ExpertFormat = "int8"): ExpertLoad[] {
  return Array.from({ length: count }, (_, i) => ({ layer: 0, expert: i, slot: i, format }));
}

/** A device that only keeps what it gets. */
function keeper() {
  const slots: PackedExpert[] = [];
  let settled = 0;
  return {
    slots,
    settledCount: () => settled,
    loadPacked: (_layer: number, slot: number, packed: PackedExpert) => {
      slots[slot] = packed;
    },
    settled: async () => {
      settled++;
    },
  };
}

test("threads pack the bits that packExpert packs, whatever buffers the weights stand in", async (t) => {
  const pool = new PackPool(2);
  t.after(() => pool.close());
  const formats = ["f32", "f16", "int8", "int4-g32", "int4-g128", "mxfp4"] as const;
  const packed = await Promise.all(
    formats.map((format, seed) => {
      const weights = expert(seed);
      // In one buffer together, as parts of a fused tensor may be.
      const all = new Uint8Array(2 * weights.gate.bytes.length);
      all.set(weights.gate.bytes);
      all.set(weights.up.bytes, weights.gate.bytes.length);
      const gate = { ...weights.gate, bytes: all.subarray(0, weights.gate.bytes.length) };
      const up = { ...weights.up, bytes: all.subarray(weights.gate.bytes.length) };
      return pool.pack({ name: "e", weights: { ...weights, gate, up }, sizes, format });
    }),
  );
  for (const [seed, format] of formats.entries()) {
    assert.deepEqual(packed[seed], packExpert("e", expert(seed), sizes, format), format);
  }
  await pool.close();
  await assert.rejects(
    pool.pack({ name: "e", weights: expert(0), sizes, format: "f16" }),
    /pool of packing threads is closed/,
  );
});

test("what packing throws comes out of a thread with its class and message", async (t) => {
  const pool = new PackPool(1);
  t.after(() => pool.close());
  const pack = (change: Partial<ExpertWeights>) =>
    pool.pack({
      name: "layer 3 expert 17",
      weights: { ...expert(0), ...change },
      sizes,
      format: "f16",
    });
  const large = () => ({
    shape: [40, 64],
    dtype: "F32" as const,
    bytes: bytesOf(new Float32Array(2560).fill(1e6, 100, 101)),
  });
  await assert.rejects(pack({ up: large() }), (error) => {
    assert.ok(error instanceof WeightOverflowError);
    assert.match(error.message, /^layer 3 expert 17 up: holds 1000000, f16 takes at most 65504/u);
    return true;
  });
  await assert.rejects(pack({ down: large() }), (error) => {
    assert.ok(error instanceof RangeError);
    assert.match(error.message, /^layer 3 expert 17 down: shape \[40, 64\], expected \[64, 40\]/u);
    return true;
  });
  assert.equal((await pack({})).format, "f16", "the thread goes on");
});

test("experts come into their slots in their formats, with and without threads", async () => {
  for (const numWorkers of [0, 2]) {
    const device = keeper();
    const wanted = loads(5).map(({ layer, expert: id }): ExpertLoad => {
      return { layer, expert: id, slot: 4 - id, format: id === 2 ? "int4-g64" : "f16" };
    });
    const loaded: number[] = [];
    await loadExperts(wanted, {
      sizes,
      read: async (_layer, id) => expert(id),
      device,
      numWorkers,
      onExpert: (load) => loaded.push(load.expert),
    });
    assert.deepEqual(
      loaded.toSorted((a, b) => a - b),
      [0, 1, 2, 3, 4],
    );
    for (const { expert: id, slot, format } of wanted) {
      assert.deepEqual(device.slots[slot], packExpert("e", expert(id), sizes, format));
    }
    assert.equal(device.settledCount(), 1);
  }
});

test("the host holds no more experts than are packed at a time, and two that are read ahead", async () => {
  for (const numWorkers of [0, 2]) {
    let held = 0;
    let most = 0;
    const device = keeper();
    await loadExperts(loads(24), {
      sizes,
      read: async (_layer, id) => {
        most = Math.max(most, ++held);
        await new Promise((resolve) => setImmediate(resolve));
        return expert(id);
      },
      device: {
        ...device,
        loadPacked: (...args) => {
          held--;
          device.loadPacked(...args);
        },
      },
      numWorkers,
    });
    assert.equal(held, 0);
    assert.ok(most > 1, "the next one is read while one is packed");
    assert.ok(most <= numWorkers + 2, `${most} experts with ${numWorkers} threads`);
  }
});

test("the device settles after every 64 MiB", async () => {
  const wide: ExpertSizes = { ...sizes, hiddenSize: 1024, expertIntermediateSize: 1024 };
  const tensor = { shape: [1024, 1024], dtype: "BF16" as const, bytes: new Uint8Array(2 ** 21) };
  const device = keeper();
  let sinceSettled = 0;
  let most = 0;
  await loadExperts(loads(16, "f32"), {
    sizes: wide,
    read: async () => ({ gate: tensor, up: tensor, down: tensor }),
    device: {
      loadPacked: () => (most = Math.max(most, (sinceSettled += 3 * 2 ** 22))),
      settled: async () => {
        sinceSettled = 0;
        await device.settled();
      },
    },
    numWorkers: 0,
  });
  assert.equal(device.settledCount(), 3, "16 experts of 12 MiB");
  assert.ok(most <= 2 ** 26 + 2 * 3 * 2 ** 22, `${most} bytes on the way`);
});

test("the first failure ends the load, when nothing is under way any more", async () => {
  for (const numWorkers of [0, 2]) {
    let reading = 0;
    let asked = 0;
    const load = loadExperts(loads(50), {
      sizes,
      read: async (_layer, id) => {
        asked++;
        reading++;
        await new Promise((resolve) => setImmediate(resolve));
        reading--;
        if (id === 3) throw new Error("expert 3 can not be read");
        return expert(id);
      },
      device: keeper(),
      numWorkers,
    });
    await assert.rejects(load, /expert 3 can not be read/);
    assert.equal(reading, 0);
    assert.ok(asked < 20, `${asked} experts were asked for`);
  }
});
