/** How many threads pack experts; pure. */

import type { ExpertSizes } from "../expert-device.ts";

/** Weights from which threads are worth their start: of all experts before anything is served, of one beside serving. */
const WEIGHTS_FOR_THREADS = 2 ** 25;
const WEIGHTS_FOR_A_THREAD = 2 ** 17;

/**
 * Threads that pack so many experts: 0 packs in the caller's; undefined: as many as there are cores. Where something is
 * served meanwhile, one at most: it is to have the others.
 */
export function packThreads(
  { hiddenSize, expertIntermediateSize }: ExpertSizes,
  numExperts: number,
  isGentle: boolean,
): number | undefined {
  const weights = 3 * hiddenSize * expertIntermediateSize;
  if (isGentle) return weights < WEIGHTS_FOR_A_THREAD ? 0 : 1;
  return numExperts * weights < WEIGHTS_FOR_THREADS ? 0 : undefined;
}
