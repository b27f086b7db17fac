/** How much CPU time planning takes, beside a fixed workload of the same run: other work on the machine counts less so. */

import { planPlacement } from "../../core/placement/planner.ts";
import { seededRandom } from "../../core/random.ts";
import { driftedLoad, inputOf, USUAL, type ClusterSize } from "./timed-clusters.ts";

/** Sizes and the milliseconds that planning may take. */
const SIZES: readonly (ClusterSize & { readonly limitMs: number })[] = [
  { ...USUAL, limitMs: 100 },
  { numLayers: 61, numExperts: 256, numShards: 320, topK: 8, redundancy: 0.25, limitMs: 2000 },
];

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
