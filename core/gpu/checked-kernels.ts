/** The kernels that a process computes experts with: chosen for its adapter, and checked before they compute anything. */

import type { ExpertSizes } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";
import type { Logger } from "../platform/log.ts";
import { checkConformance } from "./conformance.ts";
import type { Gpu } from "./device.ts";
import { type ExpertKernels, plainExpertKernels } from "./expert-kernels.ts";
import { inputLoads } from "./kernels/shared-input.ts";
import { tuneExperts } from "./expert-tuning.ts";

/** Whether kernels are chosen by measuring; auto: unless the adapter is a program on the CPU. */
export type TuneSetting = "auto" | "always" | "never";

/** How kernels are chosen. */
export interface KernelChoiceOptions {
  readonly tune: TuneSetting;
  /** Where measured choices are kept. */
  readonly directory: string;
  readonly logger: Logger;
}

/** Time that measuring may take at a first start, seconds; compiling what is measured comes on top. */
const TUNING_SECONDS = 3;

/** Chooses kernels once and checks each format once. */
export class CheckedKernels {
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #options: KernelChoiceOptions;
  #kernels: Promise<ExpertKernels> | undefined;
  readonly #checked = new Map<ExpertFormat, Promise<number>>();
  #tolerance = 0;

  constructor(gpu: Gpu, sizes: ExpertSizes, options: KernelChoiceOptions) {
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.#options = options;
  }

  /** The largest error that a checked kernel was found to have, as conformance.ts counts it; 0 before the first. */
  get tolerance(): number {
    return this.#tolerance;
  }

  /**
   * The kernels for slots of these formats, measured on the first of them where no earlier call has chosen.
   * Rejects with ConformanceError, KernelError, OutOfDeviceMemoryError.
   */
  async for(formats: readonly ExpertFormat[]): Promise<ExpertKernels> {
    this.#kernels ??= this.#choose(formats[0] ?? "f16");
    const kernels = await this.#kernels;
    for (const format of formats) {
      let checked = this.#checked.get(format);
      if (checked === undefined) {
        checked = this.#check(format, kernels);
        this.#checked.set(format, checked);
      }
      this.#tolerance = Math.max(this.#tolerance, await checked);
    }
    return kernels;
  }

  async #choose(format: ExpertFormat): Promise<ExpertKernels> {
    const { tune, directory, logger } = this.#options;
    if (tune === "never" || (tune === "auto" && this.#gpu.offers.software)) {
      return plainExpertKernels(this.#sizes, inputLoads(this.#gpu.offers));
    }
    const bounds = { seconds: TUNING_SECONDS, now: () => performance.now() };
    const startedAt = performance.now();
    const tuned = await tuneExperts(this.#gpu, this.#sizes, format, directory, bounds);
    logger.info(
      {
        source: tuned.source,
        format,
        kernelsByPairsPerExpert: tuned.names,
        ms: Math.round(performance.now() - startedAt),
      },
      "expert kernels chosen",
    );
    return tuned.kernels;
  }

  async #check(format: ExpertFormat, kernels: ExpertKernels): Promise<number> {
    const startedAt = performance.now();
    const found = await checkConformance(this.#gpu, this.#sizes, [format], kernels);
    this.#options.logger.info(
      {
        adapter: this.#gpu.adapter,
        format,
        tolerance: found.tolerance,
        kernels: found.kernels.map(({ kernel, error }) => `${kernel}: ${error.toExponential(1)}`),
        ms: Math.round(performance.now() - startedAt),
      },
      "expert kernels conform",
    );
    return found.tolerance;
  }
}
