import assert from "node:assert/strict";
import { it } from "node:test";

import { placedConnection } from "../../bench/rig/shard-connection.ts";
import type { Logger } from "../../core/platform/log.ts";
import { silentLogger, startTestShard } from "../support/shards.ts";
import { later, place, withShard } from "../support/placed-shard.ts";
import { EXPERT_BYTES } from "../support/tiny-experts.ts";

it("a GPU's memory limit holds while experts move, also where all that may be placed is", async () => {
  const memoryLimit = 24 * EXPERT_BYTES;
  let peak = 0;
  await withShard(
    async (shard) => {
      const connection = await placedConnection(shard.address, shard.checkpoint, [1, 2, 3]);
      const largestLayer = shard.checkpoint.config.numExperts * EXPERT_BYTES;
      assert.equal(connection.status()?.memoryBytes, memoryLimit - largestLayer);
      const ack = await place(connection, later(shard.checkpoint, 2, [2, 3, 4]));
      assert.equal(ack.residentBytes, memoryLimit - largestLayer, "all that may be placed is");
      connection.send({ $case: "placement", value: later(shard.checkpoint, 3, [5, 6]) });
      assert.match((await connection.next("placementRefused")).reason, /at most/);
      connection.close();
      assert.ok(peak > memoryLimit - largestLayer && peak <= memoryLimit, `${peak} bytes`);
    },
    {
      device: "webgpu",
      weights: "f32",
      memoryLimit,
      wrapDevice: (device) => ({
        ...device,
        create: async (formats) => {
          const made = await device.create(formats);
          const rearrange = made.rearrange.bind(made);
          made.rearrange = (layer, slots, from) => {
            peak = Math.max(peak, made.residentBytes() + slots.length * EXPERT_BYTES);
            return rearrange(layer, slots, from);
          };
          return made;
        },
      }),
    },
  );
});

it("a shard warns where its memory holds not one expert, with both sizes", async () => {
  for (const [memoryLimit, expected] of [
    [EXPERT_BYTES, []],
    [EXPERT_BYTES - 1, [{ memoryBytes: EXPERT_BYTES - 1, expertBytes: EXPERT_BYTES }]],
  ] as const) {
    const warnings: unknown[] = [];
    const logger: Logger = Object.assign(Object.create(silentLogger) as Logger, {
      warn: (fields: unknown) => warnings.push(fields),
    });
    const shard = await startTestShard({ weights: "f32", memoryLimit, logger });
    await shard.close();
    assert.deepEqual(warnings, expected);
  }
});
