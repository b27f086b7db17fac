/** A shard's device whose runs a test may hold back, fail, or change the sums of. */

import type { ExpertDevice } from "../../core/expert-device.ts";
import type { ShardDevice } from "../../expert-service/device.ts";

/** What happens to one run. */
export interface Alteration {
  /** Awaited before it; what it rejects with, the run does. */
  readonly before?: () => Promise<void>;
  /** Changes sums [numRows, hiddenSize] in place, knowing the rows that they are of. */
  readonly after?: (sums: Float32Array, rows: Float32Array) => void;
}

/** Makes a wrapper of devices; `alter` is asked at every run. */
export function alteringDevice(
  alter: () => Alteration | undefined,
): (device: ShardDevice) => ShardDevice {
  const altered = (device: ExpertDevice): ExpertDevice =>
    new Proxy(device, {
      get(target, name) {
        const value: unknown = Reflect.get(target, name, target);
        if (name !== "run") return typeof value === "function" ? value.bind(target) : value;
        const run: ExpertDevice["run"] = async (layer, rows, slots, weights) => {
          const alteration = alter();
          await alteration?.before?.();
          const sums = await target.run(layer, rows, slots, weights);
          alteration?.after?.(sums, rows);
          return sums;
        };
        return run;
      },
    });
  return (device) => ({
    ...device,
    create: async (formats) => altered(await device.create(formats)),
  });
}
