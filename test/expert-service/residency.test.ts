import assert from "node:assert/strict";
import { test } from "node:test";

import fc from "fast-check";

import { createCpuExpertDevice } from "../../core/cpu/expert-device.ts";
import { type ExpertDevice, NO_SLOT } from "../../core/expert-device.ts";
import { inTime } from "../../core/gpu/deadline.ts";
import { openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { expertBytes, packExpert } from "../../core/weights.ts";
import type { PackedExpert } from "../../core/expert-format.ts";
import { Batcher } from "../../expert-service/batcher.ts";
import type { ShardDevice } from "../../expert-service/device.ts";
import { Residency } from "../../expert-service/residency.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import { testExpert } from "../../bench/rig/expert-reference.ts";
import { silentLogger } from "../support/shards.ts";
import { placementOf } from "../../bench/rig/shard-connection.ts";

const NUM_LAYERS = 3;

/** The CPU as a shard's device. */
function cpuDevice(device: ExpertDevice, memoryBytes: number): ShardDevice {
  return {
    adapter: "cpu",
    shaderF16: false,
    holdsTwice: false,
    anyFormat: true,
    memoryBytes,
    bindingBytes: Infinity,
    lost: device.lost,
    tolerance: () => 0,
    check: async () => {},
    create: async () => device,
    close: () => {},
  };
}

/** One thing that a router does: goes to its next epoch, says which it still uses, or leaves and comes back. */
const action = fc.record({
  router: fc.nat(2),
  kind: fc.constantFrom("place", "place", "place", "release", "leave", "fail"),
  skip: fc.nat(1),
  turns: fc.nat(12),
});

interface Router {
  stream: object;
  last: number;
  readonly acknowledged: Set<number>;
  oldest: number;
}

test("whatever routers do in whatever order, what they were told is resident is, in memory as large as the live epochs", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const { config } = checkpoint;
  const bytesOfOne = expertBytes(config, "f32");
  const memoryBytes = 9 * NUM_LAYERS * bytesOfOne;
  const packed = new Map<number, PackedExpert>();
  const expertOf = (layer: number, expert: number): PackedExpert => {
    const id = layer * 100 + expert;
    const known = packed.get(id) ?? packExpert("test", testExpert(config, id), config, "f32");
    packed.set(id, known);
    return known;
  };
  const turn = () => new Promise((resolve) => setImmediate(resolve));
  let acknowledgements = 0;
  let refusals = 0;

  await fc.assert(
    fc.asyncProperty(
      fc.array(action, { minLength: 4, maxLength: 24 }),
      fc.array(fc.uniqueArray(fc.nat(11), { minLength: 1, maxLength: 5 }), {
        minLength: 60,
        maxLength: 60,
      }),
      async (actions, experts) => {
        const device = createCpuExpertDevice({ ...config, memoryBytes });
        let failing = 0;
        const batcher = new Batcher({
          hiddenSize: config.hiddenSize,
          maxDispatches: 8,
          now: () => performance.now(),
          onStuck: assert.fail,
          runDeadlineMs: 60_000,
          hold: (epoch, layer) => residency.hold(epoch, layer),
        });
        const residency = new Residency({
          model: config,
          weights: "f32",
          experts: "f32",
          device: cpuDevice(device, memoryBytes),
          load: async (slots, _, { signal }) => {
            for (const slot of slots.empty()) {
              await turn();
              signal.throwIfAborted();
              if (failing > 0 && failing-- === 1) throw new Error("no such luck");
              device.loadPacked(slot.layer, slot.slot, expertOf(slot.layer, slot.expert));
              slots.filled(slot);
            }
          },
          bytesRead: () => 0,
          formatsBeside: () => [],
          between: (task) => batcher.between(task),
          logger: silentLogger,
        });
        const message = (epoch: number, oldestLiveEpoch: number) =>
          placementOf(checkpoint, experts[epoch], { epoch, oldestLiveEpoch });
        const routers = Array.from({ length: 3 }, (): Router => ({
          stream: {},
          last: 0,
          acknowledged: new Set(),
          oldest: 1,
        }));
        const pending: Promise<void>[] = [];
        for (const { router: index, kind, skip, turns } of actions) {
          const router = routers[index];
          if (kind === "place") {
            const { stream } = router;
            router.last += 1 + skip;
            const epoch = router.last;
            const applied = (async () => {
              try {
                await residency.apply(stream, message(epoch, router.oldest));
                acknowledgements++;
                if (router.stream === stream) router.acknowledged.add(epoch);
              } catch {
                refusals++;
              }
            })();
            pending.push(applied);
          } else if (kind === "release") {
            const newest = Math.max(0, ...router.acknowledged);
            if (newest === 0) continue;
            router.oldest = newest;
            residency.release(router.stream, newest);
          } else if (kind === "leave") {
            residency.leave(router.stream);
            router.stream = {};
            router.acknowledged.clear();
          } else {
            failing = 1 + turns;
          }
          for (let i = 0; i < turns; i++) await turn();
        }
        await inTime("all placements", Promise.all(pending), 10_000);
        for (const router of routers) {
          for (const epoch of router.acknowledged) {
            if (epoch >= router.oldest) await check(epoch);
          }
        }
        // One more is taken: nothing is stuck, and all else goes for it.
        failing = 0;
        for (const { stream } of routers) residency.leave(stream);
        await inTime("the last", residency.apply({}, message(59, 59)), 10_000);
        await check(59);
        assert.deepEqual(residency.epochs(), [59]);
        assert.equal(residency.residentBytes(), experts[59].length * NUM_LAYERS * bytesOfOne);
        await residency.close();

        async function check(epoch: number): Promise<void> {
          for (let layer = 0; layer < NUM_LAYERS; layer++) {
            const { slots } = residency.hold(epoch, layer);
            const held = [...slots.keys()].filter((expert) => slots[expert] !== NO_SLOT);
            assert.deepEqual(
              held,
              experts[epoch].toSorted((a, b) => a - b),
            );
            for (const expert of held) {
              assert.equal(await device.read(layer, slots[expert]), expertOf(layer, expert));
            }
          }
          assert.ok(residency.residentBytes() <= memoryBytes);
        }
      },
    ),
    { numRuns: 150 },
  );
  assert.ok(acknowledgements > 100 && refusals > 20, `${acknowledgements}, ${refusals}`);
  await checkpoint.close();
});

test("slots that can not be freed are tried again after a while, are logged once, and do not end the shard", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const { config } = checkpoint;
  const device = createCpuExpertDevice(config);
  const rearrange = device.rearrange.bind(device);
  let failing = false;
  let failures = 0;
  device.rearrange = (...wanted) => {
    if (!failing) return rearrange(...wanted);
    failures++;
    return Promise.reject(new Error("no such luck"));
  };
  const logged: object[] = [];
  const residency = new Residency({
    model: config,
    weights: "f32",
    experts: "f32",
    device: cpuDevice(device, Infinity),
    load: async (slots) => {
      for (const { layer, expert, slot, ...of } of slots.empty()) {
        const packed = packExpert("test", testExpert(config, expert), config, "f32");
        device.loadPacked(layer, slot, packed);
        slots.filled({ layer, expert, slot, ...of });
      }
    },
    bytesRead: () => 0,
    formatsBeside: () => [],
    between: async (task) => task(),
    tidyPauseMs: 1,
    logger: { error: (facts: object) => void logged.push(facts) },
  });
  const router = {};
  const place = (epoch: number, experts: readonly number[]) =>
    residency.apply(router, placementOf(checkpoint, experts, { epoch, oldestLiveEpoch: 1 }));
  const holds = (epoch: number, count: number) => {
    residency.hold(epoch, 0);
    return residency.residentBytes() === count * NUM_LAYERS * expertBytes(config, "f32");
  };
  await place(1, [1, 2, 3]);
  await place(2, [1, 2]);
  failing = true;
  residency.release(router, 2);
  await waitFor("another attempt", () => failures > 1);
  failing = false;
  await waitFor("what no epoch names to go", () => holds(2, 2));
  assert.deepEqual(logged, [{ reason: "no such luck" }]);
  await place(3, [1]);
  failing = true;
  failures = 0;
  residency.release(router, 3);
  await waitFor("the last attempt", () => failures === 6);
  assert.ok(holds(3, 2));
  assert.equal(logged.length, 2);
  await residency.close();
  await checkpoint.close();
});
