/** Experts from a checkpoint onto a device, streaming: while one is packed the next ones are read. */

import type { ExpertDevice, ExpertSizes, StoredExpert } from "./expert-device.ts";
import type { ExpertFormat, PackedExpert } from "./expert-format.ts";
import { PackPool } from "./packing/pack-pool.ts";
import { packExpert } from "./weights.ts";

/** An expert and where it goes. */
export interface ExpertLoad {
  readonly layer: number;
  readonly expert: number;
  readonly slot: number;
  /** The slot's. */
  readonly format: ExpertFormat;
}

/** What loading needs. */
export interface LoadExpertsOptions {
  readonly sizes: ExpertSizes;
  readonly read: (layer: number, expert: number) => Promise<StoredExpert>;
  readonly device: Pick<ExpertDevice, "loadPacked" | "settled">;
  /** Called after each expert that was loaded; they come in any order. */
  readonly onExpert?: (load: ExpertLoad) => void;
  /** Threads that pack; 0 packs in this one. As many as there are cores, where there is enough to do. */
  readonly numWorkers?: number;
}

/** Weights from which threads are worth their start. */
const WEIGHTS_FOR_THREADS = 2 ** 25;

/** Experts that are read ahead of those that are packed. */
const READ_AHEAD = 2;

/** Packed bytes that may be on their way to the device. */
const BYTES_ON_THE_WAY = 2 ** 26;

/**
 * Loads experts into slots that are allocated. The host holds as many experts as are packed at a time, READ_AHEAD more,
 * and BYTES_ON_THE_WAY. Rejects with the first thing that goes wrong, when nothing is under way any more.
 */
export async function loadExperts(
  experts: readonly ExpertLoad[],
  options: LoadExpertsOptions,
): Promise<void> {
  const { sizes, read, device, onExpert } = options;
  const weights = experts.length * 3 * sizes.hiddenSize * sizes.expertIntermediateSize;
  const numWorkers = options.numWorkers ?? (weights < WEIGHTS_FOR_THREADS ? 0 : undefined);
  const pool = numWorkers === 0 ? undefined : new PackPool(numWorkers);
  let next = 0;
  let stopped = false;
  let onTheWay = 0;
  const lane = async (): Promise<void> => {
    while (next < experts.length) {
      const load = experts[next++];
      const { layer, expert, slot, format } = load;
      const request = {
        name: `layer ${layer} expert ${expert}`,
        weights: await read(layer, expert),
        sizes,
        format,
      };
      const packed = pool
        ? await pool.pack(request)
        : packExpert(request.name, request.weights, sizes, format);
      if (stopped) return;
      device.loadPacked(layer, slot, packed);
      onExpert?.(load);
      onTheWay += packedBytes(packed);
      if (onTheWay > BYTES_ON_THE_WAY) {
        onTheWay = 0;
        await device.settled();
      }
    }
  };
  try {
    const lanes = Array.from({ length: (pool?.numWorkers ?? 0) + READ_AHEAD }, () =>
      lane().catch((error: unknown) => {
        stopped = true;
        next = experts.length;
        throw error;
      }),
    );
    const failed = (await Promise.allSettled(lanes)).find(({ status }) => status === "rejected");
    if (failed?.status === "rejected") throw failed.reason;
    await device.settled();
  } finally {
    await pool?.close();
  }
}

function packedBytes({ gate, up, down }: PackedExpert): number {
  return [gate, up, down].reduce(
    (sum, { weights, scales }) => sum + weights.byteLength + scales.byteLength,
    0,
  );
}
