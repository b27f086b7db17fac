/** Experts from a checkpoint onto a device, streaming: while one is packed the next ones are read. */

import type { ExpertDevice, ExpertSizes, StoredExpert } from "./expert-device.ts";
import type { ExpertFormat, PackedExpert } from "./expert-format.ts";
import { PackPool } from "./packing/pack-pool.ts";
import { packThreads } from "./packing/pack-threads.ts";
import { packExpert } from "./weights.ts";
import { onTheWay, PORTION_BYTES, type RunsBeside, writePortions } from "./write-portions.ts";

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
  /** Threads that pack where nothing is served beside; 0 packs in this one. As many as there are cores, where there is enough to do. */
  readonly numWorkers?: number;
  /** What is served meanwhile, and given way to; absent: nothing. */
  readonly beside?: LoadBeside;
  /** Ends the load: no other expert is begun. */
  readonly signal?: AbortSignal;
}

/** Runs that a load gives way to. */
export interface LoadBeside extends RunsBeside {
  readonly device: Pick<ExpertDevice, "loadParts">;
  /** Where there were runs since `startedAt`, milliseconds of `performance.now`, waits as long again as the work took. */
  readonly giveWay: (startedAt: number, workMs: number) => Promise<void>;
}

/** Experts that are read ahead of those that are packed. */
const READ_AHEAD = 2;

/**
 * Loads experts into slots that are allocated. The host holds as many experts as are packed at a time, READ_AHEAD more,
 * and what may be on its way. Rejects with the first thing that goes wrong, or the signal's reason, when nothing is under way
 * any more.
 */
export async function loadExperts(
  experts: readonly ExpertLoad[],
  options: LoadExpertsOptions,
): Promise<void> {
  const { sizes, read, device, onExpert, beside, signal } = options;
  const isGentle = () => beside?.gentle() === true;
  const threads = packThreads(sizes, experts.length, isGentle());
  const numWorkers = isGentle() ? threads : (options.numWorkers ?? threads);
  const pool = numWorkers === 0 ? undefined : new PackPool(numWorkers);
  const readAhead = isGentle() ? 1 : READ_AHEAD;
  let next = 0;
  let stopped = false;
  const onPortion = onTheWay(device);
  const lane = async (): Promise<void> => {
    while (next < experts.length) {
      signal?.throwIfAborted();
      const load = experts[next++];
      const { layer, expert, slot, format } = load;
      const startedAt = performance.now();
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
      signal?.throwIfAborted();
      let waitedMs: number | undefined = 0;
      if (beside !== undefined && isGentle()) {
        const parts = beside.device.loadParts(layer, slot, packed, PORTION_BYTES);
        const isOver = () => stopped || signal?.aborted === true;
        waitedMs = await writePortions(parts, beside, isOver, onPortion);
        if (waitedMs === undefined) {
          signal?.throwIfAborted();
          return;
        }
      } else {
        device.loadPacked(layer, slot, packed);
        await onPortion(packedBytes(packed));
      }
      onExpert?.(load);
      if (isGentle()) await beside?.giveWay(startedAt, performance.now() - startedAt - waitedMs);
    }
  };
  try {
    const lanes = Array.from({ length: (pool?.numWorkers ?? 0) + readAhead }, () =>
      lane().catch((error: unknown) => {
        stopped = true;
        next = experts.length;
        throw signal?.aborted ? signal.reason : error;
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
