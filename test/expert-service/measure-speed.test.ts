import assert from "node:assert/strict";
import { it } from "node:test";

import { SILU } from "../../core/cpu/activation.ts";
import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import type { ExpertDevice } from "../../core/expert-device.ts";
import { EXPERT_FORMATS, type ExpertFormat } from "../../core/expert-format.ts";
import { expertBytes } from "../../core/weights.ts";
import { advertisedAddress } from "../../expert-service/advertise.ts";
import { openShardDevice } from "../../expert-service/device.ts";
import { measureSpeed } from "../../expert-service/measure-speed.ts";
import { startShard } from "../../expert-service/shard.ts";
import { sumsOf } from "../support/placed-shard.ts";
import {
  helloFor,
  openShardConnection,
  placedConnection,
} from "../../bench/rig/shard-connection.ts";
import { silentLogger, startTestShard } from "../support/shards.ts";

const SIZES = {
  hiddenSize: 64,
  expertIntermediateSize: 40,
  activation: SILU,
  expertBias: true,
} as const;

/** A device whose clock goes on by so many milliseconds with each run; what it computes must be finite. */
function clockedDevice(runMs: (slots: Uint32Array, run: number, format: ExpertFormat) => number) {
  const inner = createCpuExpertDevice(SIZES);
  const seen = { clock: 0, runs: 0 };
  let format: ExpertFormat = "f32";
  const device = Object.create(inner, {
    run: {
      value: async (...call: Parameters<typeof inner.run>) => {
        const sums = await inner.run(...call);
        assert.ok(sums.every(Number.isFinite));
        seen.clock += runMs(call[2], seen.runs++, format);
        return sums;
      },
    },
    allocate: {
      value: (layer: number, formats: readonly ExpertFormat[]) => {
        [format] = formats;
        inner.allocate(layer, formats);
      },
    },
    loadPacked: { value: inner.loadPacked.bind(inner) },
    free: { value: inner.free.bind(inner) },
  }) as typeof inner;
  return { device, inner, seen };
}

const MEASURED = { sizes: SIZES, numExperts: 12, topK: 4, memoryBytes: 1e9 } as const;

it("a device's speed is the pairs of its median run, in every format, and leaves nothing on it", async () => {
  for (const format of EXPERT_FORMATS) {
    // The first run is slow, as on a GPU; then 10 ms, every third one 40.
    const { device, inner, seen } = clockedDevice((_, run) =>
      run === 0 ? 900 : run % 3 === 0 ? 40 : 10,
    );
    const { pairsPerSecond, formats } = await measureSpeed(device, {
      ...MEASURED,
      formats: [format],
      memoryBytes: 5 * expertBytes(SIZES, format),
      now: () => seen.clock,
    });
    assert.equal(pairsPerSecond, 32 / 0.01);
    assert.equal(formats[0].format, format);
    assert.ok(seen.runs > 3 && seen.runs < 30, `${seen.runs} runs`);
    assert.equal(inner.residentBytes(), 0);
  }
});

it("what reading an expert takes is told apart from its pairs and the run's own time, in each format", async () => {
  const { device, seen } = clockedDevice((slots, _, format) => {
    const [each, read] = format === "f32" ? [0.2, 0.7] : [0.3, 0.1];
    return 3 + read * new Set(slots).size + each * slots.length;
  });
  const { formats } = await measureSpeed(device, {
    ...MEASURED,
    formats: ["f32", "int8"],
    now: () => seen.clock,
  });
  const micros = formats.map(({ secondsPerExpert, secondsPerPair }) =>
    [secondsPerExpert, secondsPerPair].map((seconds) => Math.round(1e6 * seconds)),
  );
  assert.deepEqual(micros, [
    [700, 200],
    [100, 300],
  ]);
});

it("a slow device is measured by few runs, and in its commonest format alone", async () => {
  const { device, seen } = clockedDevice(() => 200);
  const { pairsPerSecond, formats } = await measureSpeed(device, {
    ...MEASURED,
    formats: ["f32", "int8", "f16"],
    now: () => seen.clock,
  });
  assert.equal(pairsPerSecond, 32 / 0.2);
  assert.equal(formats.length, 1);
  assert.equal(seen.runs, 4);
  assert.ok(formats[0].secondsPerPair > 0, "a pair takes something even where size shows nothing");
});

it("a device that no expert fits on has no speed", async () => {
  const device = createCpuExpertDevice(SIZES);
  const now = () => performance.now();
  const options = { ...MEASURED, formats: ["f32"], memoryBytes: 99, now } as const;
  assert.deepEqual(await measureSpeed(device, options), { pairsPerSecond: 0, formats: [] });
});

for (const device of ["cpu", "webgpu"] as const) {
  it(`a shard on ${device} says its speed and its start in its hello, and serves with the same device`, async () => {
    const shard = await startTestShard({ device, measureSpeed: true, weights: "f32" });
    const hellos = [];
    for (let i = 0; i < 2; i++) {
      const connection = openShardConnection(shard.address);
      connection.send({ $case: "hello", value: helloFor(shard.checkpoint) });
      hellos.push(await connection.next("hello"));
      connection.close();
    }
    assert.ok(hellos[0].pairsPerSecond > 0);
    assert.ok(hellos[0].formatSpeeds.length > 0);
    for (const { format, secondsPerPair, secondsPerExpert } of hellos[0].formatSpeeds) {
      assert.ok(secondsPerPair > 0 && secondsPerExpert >= 0, `${format} ${secondsPerPair}`);
    }
    assert.match(hellos[0].incarnation, /^[0-9a-f-]{36}$/);
    assert.deepEqual(hellos[1], hellos[0]);
    const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2]);
    await sumsOf(connection, 1, [1, 2, 65535, 65535]);
    connection.close();
    await shard.close();
  });
}

it("a shard that can not start leaves no device behind: its runs fail, or its address is taken", async () => {
  const taken = await startTestShard();
  const { checkpoint } = taken;
  const inner = await openShardDevice(
    { device: "cpu", memoryLimit: undefined },
    checkpoint.config,
    silentLogger,
  );
  const start = async (address: string, run?: ExpertDevice["run"]) => {
    const made: ExpertDevice[] = [];
    const create: typeof inner.create = async (formats) => {
      const device = await inner.create(formats);
      if (run !== undefined) device.run = run;
      made.push(device);
      return device;
    };
    const starting = startShard(address, {
      rank: 1,
      weights: "f32",
      experts: "auto",
      maxDispatches: 4,
      checkpoint,
      device: { ...inner, create },
      logger: silentLogger,
      onFailure: () => {},
      measureSpeed: true,
    });
    const { message } = (await starting.catch((error: unknown) => error)) as Error;
    const none = new Float32Array();
    delete (made[0] as { run?: unknown }).run;
    await assert.rejects(made[0].run(1, none, new Uint32Array(), none), /device is closed/);
    return message;
  };
  assert.match(await start("127.0.0.1:0", () => Promise.reject(new Error("no run"))), /^no run$/);
  assert.match(await start(taken.address), /can not listen on/);
  await taken.close();
});

it("a shard is reached where it says, else where it listens; for every interface it names one that others see", () => {
  assert.equal(advertisedAddress("a.example:7", "127.0.0.1", 50), "a.example:7");
  assert.equal(advertisedAddress(undefined, "10.0.0.7", 50), "10.0.0.7:50");
  assert.equal(advertisedAddress(undefined, "::1", 50), "[::1]:50");
  assert.match(advertisedAddress(undefined, "0.0.0.0", 50), /^(?!0\.0\.0\.0).+:50$/);
});
