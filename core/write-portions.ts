/** Experts onto a device in portions, so that runs come in between. */

import type { ExpertDevice } from "./expert-device.ts";

/** Bytes that are written at a time, and how long that may go on between two runs, milliseconds. */
export const PORTION_BYTES = 2 ** 20;
const PORTIONS_MS = 2;

/** Packed bytes that may be on their way to the device. */
const BYTES_ON_THE_WAY = 2 ** 26;

/** Runs that are served while experts are loaded. */
export interface RunsBeside {
  /** Whether there may be any now. */
  readonly gentle: () => boolean;
  /** Settles between two runs: at once where there are none. */
  readonly turn: () => Promise<void>;
}

/**
 * Lets a generator of `ExpertDevice.loadParts` write, for PORTIONS_MS at most between two runs; `onPortion` is awaited after
 * each. Gives the milliseconds that were spent on waiting for runs; undefined where `isOver` ended it before its last part.
 */
export async function writePortions(
  parts: Iterable<number>,
  { gentle, turn }: RunsBeside,
  isOver: () => boolean,
  onPortion: (bytes: number) => Promise<void> | undefined,
): Promise<number | undefined> {
  let until = 0;
  let waitedMs = 0;
  for (const bytes of parts) {
    if (gentle() && performance.now() >= until) {
      const turnAt = performance.now();
      await turn();
      const now = performance.now();
      until = now + PORTIONS_MS;
      waitedMs += now - turnAt;
      if (isOver()) return undefined;
    }
    await onPortion(bytes);
  }
  return waitedMs;
}

/** Counts the bytes of a load that are written: what it gives is to be awaited, and settles when few enough are on their way. */
export function onTheWay(
  device: Pick<ExpertDevice, "settled">,
): (bytes: number) => Promise<void> | undefined {
  let sum = 0;
  return (bytes) => {
    sum += bytes;
    if (sum <= BYTES_ON_THE_WAY) return undefined;
    sum = 0;
    return device.settled();
  };
}
