/**
 * Which kernels are fastest on an adapter at a model's widths: measured at the first start, within a bounded time, and
 * kept in a file.
 *
 * The kernels of one kind give a row the same bits in whatever batch it comes. Those of different kinds add up in different
 * orders, so that with tuned kernels a row's last bits may depend on whether its batch was small or large; the kernels
 * that need nothing of an adapter add up in one order whatever the batch, and remain the choice where that matters.
 */

import { createHash } from "node:crypto";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";

import type { ExpertSizes } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";
import { DeviceTimeoutError, inTime } from "./deadline.ts";
import type { Gpu } from "./device.ts";
import { largestPart } from "./expert-banks.ts";
import {
  type Candidate,
  candidateGroup,
  candidateKernels,
  candidateName,
  candidatesFor,
} from "./expert-candidates.ts";
import {
  densityOf,
  EXACT,
  type ExpertKernels,
  GROUPED_FROM,
  ROUNDED_TO_F16,
} from "./expert-kernels.ts";
import { openTimer } from "./kernel-timing.ts";
import { KernelError } from "./kernel.ts";
import { compileHalves, type MeasuredKernels, SyntheticExperts } from "./synthetic-experts.ts";
import { dropPoints, readPoints, type TunedPoint, writePoints } from "./tuning-file.ts";

/** Pairs per slot at which candidates are measured. */
const DENSITIES = [1, 4, 16, 64] as const;

/** The choice for a density: of the two nearest measured, the one whose ratio to it is less. */
export function nearestPoint(points: readonly TunedPoint[], pairsPerSlot: number): number {
  let best = 0;
  const distance = (index: number) =>
    Math.abs(Math.log(points[index].pairsPerSlot / Math.max(1, pairsPerSlot)));
  for (let i = 1; i < points.length; i++) if (distance(i) < distance(best)) best = i;
  return best;
}

/** Error that a candidate's results may have. */
function limitOf(candidate: Candidate): number {
  return candidate.kind === "subgroupMatrix" ? ROUNDED_TO_F16 : EXACT;
}

/** The kernels of measured choices; a candidate that is the choice at several densities is one regime. */
export function tunedKernels(sizes: ExpertSizes, points: readonly TunedPoint[]): ExpertKernels {
  const names = [...new Set(points.map(({ candidate }) => JSON.stringify(candidate)))];
  const regimeOf = points.map(({ candidate }) => names.indexOf(JSON.stringify(candidate)));
  return {
    regimes: names.map((_, regime) => {
      const { candidate } = points[regimeOf.indexOf(regime)];
      return {
        group: candidateGroup(candidate),
        bank: (format) => candidateKernels(candidate, sizes, format),
        limit: limitOf(candidate),
      };
    }),
    choose: (step) => regimeOf[nearestPoint(points, densityOf(step))],
  };
}

/** Bytes of weights that a measurement allocates at most, unless one slot takes more. */
const TUNING_BYTES = 512 * 2 ** 20;

/** How much a measurement may do. */
export interface TuningBounds {
  /** All densities together; the first candidate of each is measured even so, unless the deadline is over. */
  readonly seconds: number;
  /** Compiling included: what is not measured by then stays unmeasured. */
  readonly deadlineSeconds: number;
  /** Milliseconds, monotonic. */
  readonly now: () => number;
}

/** A candidate's kernels; undefined where the driver refuses them or is late: there are others, the plain ones at the least. */
async function compileCandidate(
  gpu: Gpu,
  candidate: Candidate,
  sizes: ExpertSizes,
  format: ExpertFormat,
  timeoutMs: number,
): Promise<MeasuredKernels | undefined> {
  try {
    const kernels = candidateKernels(candidate, sizes, format);
    const compiling = compileHalves(gpu, candidateGroup(candidate), kernels);
    return await inTime("a compilation", compiling, timeoutMs);
  } catch (error) {
    if (error instanceof KernelError || error instanceof DeviceTimeoutError) return undefined;
    throw error;
  }
}

/** The candidates of this adapter. */
function candidatesHere({ offers, device: { limits } }: Gpu, pairsPerSlot: number): Candidate[] {
  return candidatesFor(pairsPerSlot, {
    offers,
    workgroupBytes: limits.maxComputeWorkgroupStorageSize,
    workgroupThreads: limits.maxComputeInvocationsPerWorkgroup,
  });
}

/** Whether a choice is more than a stand-in. */
function isMeasured({ seconds }: TunedPoint): boolean {
  return Number.isFinite(seconds);
}

/** The choice at a density of which nothing was measured. */
function unmeasured(pairsPerSlot: number): TunedPoint {
  const candidate: Candidate = { kind: "plain", rows: pairsPerSlot < GROUPED_FROM ? 1 : 4 };
  return { pairsPerSlot, candidate, seconds: Number.POSITIVE_INFINITY };
}

/** Measures the candidates at every density; where time or the driver allows none, plain kernels of infinite seconds. Rejects with OutOfDeviceMemoryError, DeviceTimeoutError. */
async function measureCandidates(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  { seconds, deadlineSeconds, now }: TuningBounds,
): Promise<TunedPoint[]> {
  const { limits } = gpu.device;
  const slotBytes = largestPart(sizes, format);
  const most = Math.min(TUNING_BYTES, limits.maxBufferSize, limits.maxStorageBufferBindingSize);
  const numSlots = Math.max(1, Math.min(16, Math.floor(most / slotBytes)));
  const timer = openTimer(gpu);
  const startedAt = now();
  const leftMs = () => startedAt + 1000 * deadlineSeconds - now();
  const points: TunedPoint[] = [];
  try {
    for (const [i, pairsPerSlot] of DENSITIES.entries()) {
      if (leftMs() <= 0) {
        points.push(unmeasured(pairsPerSlot));
        continue;
      }
      const endsAt = startedAt + (1000 * seconds * (i + 1)) / DENSITIES.length;
      const options = { sizes, format, numSlots, tokens: pairsPerSlot, topK: numSlots, batches: 1 };
      const experts = await SyntheticExperts.create(gpu, options);
      let best = unmeasured(pairsPerSlot);
      try {
        for (const candidate of candidatesHere(gpu, pairsPerSlot)) {
          if (leftMs() <= 0 || (isMeasured(best) && now() >= endsAt)) break;
          const compiled = await compileCandidate(gpu, candidate, sizes, format, leftMs());
          if (compiled === undefined) continue;
          const { group, gateUp, down } = await experts.bind(compiled);
          const run = (pass: GPUComputePassEncoder) => {
            for (const encode of [...group, ...gateUp, ...down]) encode(pass);
          };
          const time = await timer.time([run], { seconds: 0.01 });
          if (time < best.seconds) best = { pairsPerSlot, candidate, seconds: time };
        }
      } finally {
        experts.destroy();
      }
      points.push(best);
    }
  } finally {
    timer.close();
  }
  return points;
}

/** What a measurement holds for: adapter, driver, widths, format, and the kernels' own sources. */
function keyOf(gpu: Gpu, sizes: ExpertSizes, format: ExpertFormat): string {
  const { hiddenSize, expertIntermediateSize, activation, expertBias } = sizes;
  const sources = createHash("sha256");
  for (const density of DENSITIES) {
    for (const candidate of candidatesHere(gpu, density)) {
      const { gateUp, down } = candidateKernels(candidate, sizes, format);
      sources.update(gateUp.wgsl).update(down.wgsl);
    }
  }
  return JSON.stringify([
    gpu.adapter,
    gpu.driver,
    hiddenSize,
    expertIntermediateSize,
    activation,
    expertBias,
    format,
    sources.digest("hex"),
  ]);
}

/** The fastest kernels and their names by density. */
export interface TunedExperts {
  readonly kernels: ExpertKernels;
  readonly names: Readonly<Record<string, string>>;
}

function tunedExperts(sizes: ExpertSizes, points: readonly TunedPoint[]): TunedExperts {
  return {
    kernels: tunedKernels(sizes, points),
    names: Object.fromEntries(
      points.map(({ pairsPerSlot, candidate }) => [pairsPerSlot, candidateName(candidate)]),
    ),
  };
}

/** The file that a key's choices are kept in. */
function fileOf(directory: string, key: string): string {
  return join(directory, `${createHash("sha256").update(key).digest("hex").slice(0, 32)}.json`);
}

/** The choices of an earlier start; undefined where there are none that can be read, or one is no candidate here. */
export async function keptExperts(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  directory: string,
): Promise<TunedExperts | undefined> {
  const key = keyOf(gpu, sizes, format);
  const points = await readPoints(fileOf(directory, key), key);
  const offered = points?.every(({ pairsPerSlot, candidate }) =>
    candidatesHere(gpu, pairsPerSlot).some((other) => isDeepStrictEqual(other, candidate)),
  );
  return points === undefined || !offered ? undefined : tunedExperts(sizes, points);
}

/** Forgets the choices of an earlier start, as of kernels that were refused; a file that can not be removed is done without. */
export async function dropKeptExperts(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  directory: string,
): Promise<void> {
  await dropPoints(fileOf(directory, keyOf(gpu, sizes, format)));
}

/**
 * Measures which kernels are fastest, and keeps that for later starts where all was measured; a directory that can not be
 * written is done without. Rejects with OutOfDeviceMemoryError, DeviceTimeoutError.
 */
export async function measuredExperts(
  gpu: Gpu,
  sizes: ExpertSizes,
  format: ExpertFormat,
  directory: string,
  bounds: TuningBounds,
): Promise<TunedExperts> {
  const key = keyOf(gpu, sizes, format);
  const points = await measureCandidates(gpu, sizes, format, bounds);
  if (points.every(isMeasured)) await writePoints(directory, fileOf(directory, key), key, points);
  return tunedExperts(sizes, points);
}
