/** Both halves of experts, each candidate timed over batches that take turns over the slots. */

import type { ExpertFormat } from "../../core/expert-format.ts";
import { matrixBytes } from "../../core/expert-format.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import {
  type Candidate,
  candidateGroup,
  candidateKernels,
  candidateName,
  candidatesFor,
} from "../../core/gpu/expert-candidates.ts";
import type { KernelTimer } from "../../core/gpu/kernel-timing.ts";
import { compileHalves, SyntheticExperts } from "../../core/gpu/synthetic-experts.ts";
import type { ModelWidths } from "./floors.ts";
import type { Timed } from "./plain-product.ts";

/** The fastest candidate of each half, and what sorting costs the candidates that need it. */
export interface TimedExperts {
  readonly gateUp: Timed;
  readonly down: Timed;
}

/** Slots that one bank of this device can hold, within a number of bytes. */
export function slotsThatFit(
  gpu: Gpu,
  widths: ModelWidths,
  format: ExpertFormat,
  bytes: number,
): number {
  const { hiddenSize: h, expertIntermediateSize: i, numExperts } = widths;
  const { maxBufferSize, maxStorageBufferBindingSize } = gpu.device.limits;
  const slot = matrixBytes(format, 2 * i, h);
  const most = Math.min(maxBufferSize, maxStorageBufferBindingSize, bytes);
  return Math.min(numExperts, Math.floor(most / slot));
}

/** The candidates of an adapter; of a program on the CPU only some, as each takes seconds to compile. */
function candidatesOf(gpu: Gpu, pairsPerSlot: number): Candidate[] {
  const { limits } = gpu.device;
  const all = candidatesFor(pairsPerSlot, {
    offers: gpu.offers,
    workgroupBytes: limits.maxComputeWorkgroupStorageSize,
    workgroupThreads: limits.maxComputeInvocationsPerWorkgroup,
  });
  if (!gpu.offers.software) return all;
  const seen = new Set<string>();
  return all.filter(({ kind }) => !seen.has(kind) && seen.add(kind));
}

/** The fastest of the candidates for each half. Throws OutOfDeviceMemoryError where a bank does not fit. */
export async function timeExperts(
  gpu: Gpu,
  timer: KernelTimer,
  widths: ModelWidths,
  format: ExpertFormat,
  rows: number,
  options: { readonly seconds: number; readonly numSlots: number },
): Promise<TimedExperts> {
  const { numSlots, seconds } = options;
  const topK = Math.min(widths.topK, numSlots);
  const sizes = { ...widths, activation: { kind: "silu" }, expertBias: false } as const;
  const pairs = rows * topK;
  const batches = Math.max(1, Math.min(8, Math.floor(numSlots / pairs)));
  const experts = await SyntheticExperts.create(gpu, {
    sizes,
    format,
    numSlots,
    tokens: rows,
    topK,
    batches,
  });
  const best = {
    gateUp: { name: "none", seconds: Number.POSITIVE_INFINITY },
    down: { name: "none", seconds: Number.POSITIVE_INFINITY },
  };
  try {
    for (const candidate of candidatesOf(gpu, pairs / Math.min(pairs, numSlots))) {
      const kernels = candidateKernels(candidate, sizes, format);
      const runs = await experts.bind(await compileHalves(gpu, candidateGroup(candidate), kernels));
      for (const half of ["gateUp", "down"] as const) {
        const time = await timer.time(runs[half], { seconds });
        if (time < best[half].seconds)
          best[half] = { name: candidateName(candidate), seconds: time };
      }
    }
  } finally {
    experts.destroy();
  }
  return best;
}
