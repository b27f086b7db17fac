/** The kernels that a process computes experts with: chosen for its adapter, and checked before they compute anything. */

import { errorMessage } from "../error-message.ts";
import type { ExpertSizes } from "../expert-device.ts";
import type { ExpertFormat } from "../expert-format.ts";
import type { Logger } from "../platform/log.ts";
import { checkConformance, ConformanceError } from "./conformance.ts";
import type { Gpu } from "./device.ts";
import { checkExpertFits } from "./expert-banks.ts";
import { type ExpertKernels, plainExpertKernels } from "./expert-kernels.ts";
import { KernelError } from "./kernel.ts";
import { inputLoads } from "./kernels/shared-input.ts";
import { dropKeptExperts, keptExperts, measuredExperts } from "./expert-tuning.ts";

/** Whether kernels are chosen by measuring; auto: unless the adapter is a program on the CPU. */
export type TuneSetting = "auto" | "always" | "never";

/** How kernels are chosen. */
export interface KernelChoiceOptions {
  readonly tune: TuneSetting;
  /** Where measured choices are kept. */
  readonly directory: string;
  readonly logger: Logger;
}

/** Time that measuring may take at a first start, and what it may take with compiling, seconds. */
const TUNING_SECONDS = 3;
const TUNING_DEADLINE_SECONDS = 30;

/** Where kernels come from, the best first: each stands in for the one before where a kernel of that is refused. */
const SOURCES = ["kept", "measured", "plain"] as const;

type Source = (typeof SOURCES)[number];

/** Whether an error says that kernels do not work here, so that others may. */
function refuses(error: unknown): boolean {
  return error instanceof KernelError || error instanceof ConformanceError;
}

/**
 * Tries sources in turn: the first that has kernels which pass `check`. A refusal of any but the last goes to `onRefused`;
 * that of the last, and any other error, is thrown.
 */
export async function firstThatConforms<S, K>(
  sources: readonly S[],
  kernelsFrom: (source: S) => Promise<K | undefined>,
  check: (kernels: K) => Promise<void>,
  onRefused: (source: S, error: unknown) => void | Promise<void>,
): Promise<{ readonly source: S; readonly kernels: K }> {
  for (const [i, source] of sources.entries()) {
    try {
      const kernels = await kernelsFrom(source);
      if (kernels === undefined) continue;
      await check(kernels);
      return { source, kernels };
    } catch (error) {
      if (i === sources.length - 1 || !refuses(error)) throw error;
      await onRefused(source, error);
    }
  }
  throw new RangeError("no source has kernels");
}

/** Chooses kernels once per format that most slots have, and checks each format once with each choice. */
export class CheckedKernels {
  readonly #gpu: Gpu;
  readonly #sizes: ExpertSizes;
  readonly #options: KernelChoiceOptions;
  readonly #plain: ExpertKernels;
  readonly #chosen = new Map<
    ExpertFormat,
    { readonly source: Source; readonly kernels: ExpertKernels }
  >();
  readonly #checked = new Map<ExpertKernels, Set<ExpertFormat>>();
  #tail: Promise<unknown> = Promise.resolve();
  #tolerance = 0;

  constructor(gpu: Gpu, sizes: ExpertSizes, options: KernelChoiceOptions) {
    this.#gpu = gpu;
    this.#sizes = sizes;
    this.#options = options;
    this.#plain = plainExpertKernels(sizes, inputLoads(gpu.offers));
  }

  /** The largest error that a checked kernel was found to have, as conformance.ts counts it; 0 before the first. */
  get tolerance(): number {
    return this.#tolerance;
  }

  /**
   * The kernels for slots of these formats, the commonest first: what is fastest is measured on that.
   * Rejects with ConformanceError, KernelError, OutOfDeviceMemoryError, DeviceTimeoutError.
   */
  for(formats: readonly ExpertFormat[]): Promise<ExpertKernels> {
    // One call at a time: two would measure against each other.
    const kernels = this.#tail.then(() => this.#conforming(formats));
    this.#tail = kernels.catch(() => {});
    return kernels;
  }

  async #conforming(formats: readonly ExpertFormat[]): Promise<ExpertKernels> {
    // What is measured and checked takes such buffers too, and would say less of them.
    for (const format of formats) checkExpertFits(this.#sizes, format, this.#gpu.maxBindingBytes);
    const common = formats[0] ?? "f16";
    const known = this.#chosen.get(common);
    const chosen = await firstThatConforms(
      known === undefined ? this.#sources() : SOURCES.slice(SOURCES.indexOf(known.source)),
      async (source) =>
        known?.source === source ? known.kernels : this.#kernelsFrom(source, common),
      async (kernels) => {
        for (const format of formats) await this.#check(format, kernels);
      },
      async (source, error) => {
        const facts = { source, format: common, reason: errorMessage(error) };
        this.#options.logger.warn(facts, "expert kernels refused: others are tried");
        await dropKeptExperts(this.#gpu, this.#sizes, common, this.#options.directory);
      },
    );
    this.#chosen.set(common, chosen);
    return chosen.kernels;
  }

  #sources(): readonly Source[] {
    const { tune } = this.#options;
    const untuned = tune === "never" || (tune === "auto" && this.#gpu.offers.software);
    return untuned ? ["plain"] : SOURCES;
  }

  async #kernelsFrom(source: Source, format: ExpertFormat): Promise<ExpertKernels | undefined> {
    if (source === "plain") return this.#plain;
    const { directory, logger } = this.#options;
    const bounds = {
      seconds: TUNING_SECONDS,
      deadlineSeconds: TUNING_DEADLINE_SECONDS,
      now: () => performance.now(),
    };
    const startedAt = performance.now();
    const tuned =
      source === "kept"
        ? await keptExperts(this.#gpu, this.#sizes, format, directory)
        : await measuredExperts(this.#gpu, this.#sizes, format, directory, bounds);
    if (tuned === undefined) return undefined;
    logger.info(
      {
        source,
        format,
        kernelsByPairsPerExpert: tuned.names,
        ms: Math.round(performance.now() - startedAt),
      },
      "expert kernels chosen",
    );
    return tuned.kernels;
  }

  async #check(format: ExpertFormat, kernels: ExpertKernels): Promise<void> {
    const checked = this.#checked.get(kernels) ?? new Set();
    if (checked.has(format)) return;
    const startedAt = performance.now();
    const found = await checkConformance(this.#gpu, this.#sizes, [format], kernels);
    this.#checked.set(kernels, checked.add(format));
    this.#tolerance = Math.max(this.#tolerance, found.tolerance);
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
  }
}
