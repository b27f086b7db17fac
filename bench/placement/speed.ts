/** How much CPU time planning takes, beside a fixed workload of the same run: other work on the machine counts less so. */

import { planPlacement, type PlannerInput } from "../../core/placement/planner.ts";
import { drawNormal, seededRandom } from "../../core/random.ts";

/** A cluster to plan for; memory is in copies of one expert. */
interface Size {
  readonly numLayers: number;
  readonly numExperts: number;
  readonly numShards: number;
  readonly topK: number;
  readonly redundancy: number;
}

/** Sizes and the milliseconds that planning may take. */
const SIZES: readonly (Size & { readonly limitMs: number })[] = [
  { numLayers: 48, numExperts: 128, numShards: 16, topK: 8, redundancy: 0.125, limitMs: 100 },
  { numLayers: 61, numExperts: 256, numShards: 320, topK: 8, redundancy: 0.25, limitMs: 2000 },
];

const EXPERT_BYTES = 1e7;
const RUNS = 5;

/** CPU milliseconds of a run. */
interface CpuTime {
  /** Of the thread that plans. */
  readonly thread: number;
  /** With those that compile and collect garbage beside it. */
  readonly process: number;
}

/** Planning from nothing, and again from its own result under a load that has drifted, as Markdown. */
export function speedTable(): string {
  const rows = SIZES.map((size) => {
    const input = inputOf(size);
    const plans = times(() => planPlacement({ ...input }));
    const held = { epoch: 1, layers: planPlacement(input).target };
    const same = planPlacement({ ...input, current: held });
    const drifted = { ...input, load: driftedLoad(input), current: held };
    const replans = times(() => planPlacement({ ...drifted }));
    const next = planPlacement(drifted);
    const work = times(fixedWorkload);
    const { numLayers, numExperts, numShards } = size;
    return `| ${[
      `${numLayers} × ${numExperts} × ${numShards}`,
      listed(plans),
      size.limitMs,
      listed(replans),
      loadsIn(same),
      loadsIn(next),
      `${(1000 * next.why.secondsBefore!).toFixed(2)} → ${(1000 * next.why.secondsAfter).toFixed(2)}`,
      listed(work),
    ].join(" | ")} |`;
  });
  return [
    "| layers × experts × shards | plan CPU ms: thread / process | limit | re-plan | loads, same load | loads, drifted load | predicted step ms | fixed workload |",
    `| --- ${"| ---: ".repeat(7)}|`,
    ...rows,
  ].join("\n");
}

function listed(times: readonly CpuTime[]): string {
  return times
    .map(({ thread, process }) => `${thread.toFixed(0)} / ${process.toFixed(0)}`)
    .join(", ");
}

function loadsIn({ moves }: { readonly moves: readonly { readonly kind: string }[] }): number {
  return moves.filter(({ kind }) => kind === "load").length;
}

/** Skewed loads of a step of 4096 tokens on shards that are alike. */
function inputOf({ numLayers, numExperts, numShards, topK, redundancy }: Size): PlannerInput {
  const cells = numLayers * numExperts;
  const random = seededRandom(7);
  const load = Float64Array.from({ length: cells }, () => Math.exp(drawNormal(random)));
  for (let from = 0; from < cells; from += numExperts) {
    const ofLayer = load.subarray(from, from + numExperts);
    const sum = ofLayer.reduce((total, one) => total + one, 0);
    for (let expert = 0; expert < numExperts; expert++) ofLayer[expert] *= (4096 * topK) / sum;
  }
  return {
    layers: Array.from({ length: numLayers }, (_, index) => index),
    numExperts,
    topK,
    load,
    bytes: new Float64Array(cells).fill(EXPERT_BYTES),
    shards: Array.from({ length: numShards }, (_, rank) => ({
      rank,
      memoryBytes: Math.ceil((cells * (1 + redundancy)) / numShards) * EXPERT_BYTES,
      secondsPerPair: 1e-6,
      secondsPerExpert: 1e-6,
      rttSeconds: 1e-4,
      bytesPerSecond: 1e10,
      loadSecondsPerByte: 1e-9,
      draining: false,
      // As measured shards have: how sure a re-plan is of what it saves is a part of its time.
      spread: 0.1,
    })),
    router: { secondsPerHop: 1e-6, secondsPerRow: 0, rowBytesOut: 14_336, rowBytesIn: 28_672 },
    moves: { bytes: Infinity, steps: 1e4 },
  };
}

/** Every expert's load times a random number about one. */
function driftedLoad({ load }: PlannerInput): Float64Array {
  const random = seededRandom(8);
  return load.map((pairs) => pairs * Math.exp(0.2 * drawNormal(random)));
}

/** Sorting a million numbers. */
function fixedWorkload(): void {
  const random = seededRandom(9);
  Float64Array.from({ length: 1_000_000 }, random).sort();
}

function times(run: () => void): CpuTime[] {
  return Array.from({ length: RUNS }, () => {
    const [thread, all] = [process.threadCpuUsage(), process.cpuUsage()];
    run();
    const ms = ({ user, system }: NodeJS.CpuUsage) => (user + system) / 1000;
    return { thread: ms(process.threadCpuUsage(thread)), process: ms(process.cpuUsage(all)) };
  });
}
