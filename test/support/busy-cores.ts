/** A machine that has other things to do. */

import { Worker } from "node:worker_threads";

/** Runs `act` while `threads` threads compute without a pause, and ends them whatever happens. */
export async function withBusyCores<T>(threads: number, act: () => Promise<T>): Promise<T> {
  const workers = Array.from({ length: threads }, () => new Worker("for (;;);", { eval: true }));
  try {
    return await act();
  } finally {
    await Promise.all(workers.map((worker) => worker.terminate()));
  }
}
