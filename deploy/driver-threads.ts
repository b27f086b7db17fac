/** How many threads a software GPU has in each of several processes on one machine. Pure. */

/** The variable that llvmpipe, Mesa's software GPU, takes their number from. */
export const DRIVER_THREADS = "LP_NUM_THREADS";

/**
 * The value of DRIVER_THREADS for processes that share so many cores; undefined where one has them all, as the driver's
 * own choice is a thread per core. Fewer than two threads are none: the driver then computes where it is asked to, while
 * a single thread computes no faster and has to be woken for every kernel. Measured in bench/RESULTS.md.
 */
export function driverThreads(cores: number, processes: number): string | undefined {
  if (processes <= 1) return undefined;
  const each = Math.floor(cores / processes);
  return `${each < 2 ? 0 : each}`;
}
