/** Makes a shard's device as slow as told, so that shards of unequal speed fit on one machine. */

import { setTimeout as delay } from "node:timers/promises";

import { NO_SLOT, type ExpertDevice } from "../../core/expert-device.ts";
import type { ShardDevice } from "../../expert-service/device.ts";

/**
 * The device, a run of which takes at least `microsPerPair` for each expert of a row: what its own computation leaves of
 * that time is waited, which takes no core from others. Runs still come one after another.
 */
export function throttled(device: ExpertDevice, microsPerPair: number): ExpertDevice {
  let tail: Promise<unknown> = Promise.resolve();
  const slow: Pick<ExpertDevice, "run"> = {
    run: (layer, rows, slots, weights) => {
      const pairs = slots.reduce((count, slot) => count + Number(slot !== NO_SLOT), 0);
      const result = tail.then(async () => {
        const endsAt = performance.now() + (pairs * microsPerPair) / 1000;
        const sums = await device.run(layer, rows, slots, weights);
        const left = endsAt - performance.now();
        if (left > 0) await delay(left);
        return sums;
      });
      tail = result.catch(() => undefined);
      return result;
    },
  };
  return new Proxy(device, {
    get: (target, key) => {
      if (key === "run") return slow.run;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** The device of a shard, every ExpertDevice of which is as slow as told. */
export function throttledShardDevice(device: ShardDevice, microsPerPair: number): ShardDevice {
  return {
    ...device,
    create: async (...formats) => throttled(await device.create(...formats), microsPerPair),
  };
}
