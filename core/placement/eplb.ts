/**
 * DeepSeek's EPLB (github.com/deepseek-ai/EPLB, eplb.py), written from its description: the planner to compare with.
 * It replicates greedily, then packs greedily, every device with the same number of slots, and splits evenly.
 */

/** What EPLB answers for one layer. */
export interface EplbLayer {
  /** Logical expert of each slot of each device; one expert may come twice on a device [numDevices][slots per device]. */
  readonly experts: readonly (readonly number[])[];
  /** Copies of each logical expert [numExperts]. */
  readonly copies: readonly number[];
}

/** Global EPLB of one layer. Throws RangeError where the slots do not divide by the devices, or are fewer than experts. */
export function eplb(load: ArrayLike<number>, numSlots: number, numDevices: number): EplbLayer {
  if (numSlots % numDevices !== 0 || numSlots < load.length) {
    throw new RangeError(
      `${numSlots} slots for ${load.length} experts on ${numDevices} devices: EPLB wants as many on each device, and all experts once`,
    );
  }
  const copies = replicate(load, numSlots);
  const items = copies.flatMap((count, expert) =>
    Array.from({ length: count }, () => ({ expert, load: load[expert] / count })),
  );
  return { experts: packEvenly(items, numDevices), copies };
}

/** One copy each, then one more of whatever has the most load per copy, until all slots are taken. */
function replicate(load: ArrayLike<number>, numSlots: number): number[] {
  const copies = Array.from({ length: load.length }, () => 1);
  for (let slot = load.length; slot < numSlots; slot++) {
    let most = 0;
    for (let expert = 1; expert < load.length; expert++) {
      if (load[expert] / copies[expert] > load[most] / copies[most]) most = expert;
    }
    copies[most]++;
  }
  return copies;
}

/** Each item, heaviest first, into the lightest pack that has not got its number yet. */
function packEvenly(
  items: readonly { readonly expert: number; readonly load: number }[],
  numPacks: number,
): number[][] {
  const perPack = items.length / numPacks;
  const packs = Array.from({ length: numPacks }, () => ({ load: 0, experts: [] as number[] }));
  for (const item of [...items].sort((a, b) => b.load - a.load)) {
    let lightest: (typeof packs)[number] | undefined;
    for (const pack of packs) {
      if (pack.experts.length === perPack) continue;
      if (lightest === undefined || pack.load < lightest.load) lightest = pack;
    }
    lightest!.load += item.load;
    lightest!.experts.push(item.expert);
  }
  return packs.map((pack) => pack.experts);
}
