/** What formats of experts cost in each layer: errors of weights, and of sums over experts on a model's own hidden states. */

import type { ExpertDevice } from "../../core/expert-device.ts";
import type { ExpertFormat } from "../../core/expert-format.ts";
import { runInParts } from "../../core/expert-device.ts";
import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { plainFloats } from "../../core/packing/mxfp4-matrix.ts";
import { unpackMatrix } from "../../core/packing/quantize.ts";
import { toF32 } from "../../core/tensor.ts";
import { packExpert } from "../../core/weights.ts";
import type { RunExperts } from "../../router-service/engine/run-experts.ts";

/** Sums of squares, of what is exact and of the differences from it. */
export class ErrorSum {
  #exact = 0;
  #difference = 0;

  add(exact: ArrayLike<number>, actual: ArrayLike<number>): void {
    for (let i = 0; i < exact.length; i++) {
      this.#exact += exact[i] ** 2;
      this.#difference += (exact[i] - actual[i]) ** 2;
    }
  }

  /** Root of the squared differences over the squared exact values. */
  get relative(): number {
    return this.#difference === 0 ? 0 : Math.sqrt(this.#difference / this.#exact);
  }
}

/** Errors by layer and format. */
export class ErrorTable {
  readonly #sums = new Map<string, ErrorSum>();

  of(layer: number, format: ExpertFormat): ErrorSum {
    const key = `${layer} ${format}`;
    const sum = this.#sums.get(key) ?? new ErrorSum();
    this.#sums.set(key, sum);
    return sum;
  }
}

/** Errors of the weights of every expert. */
export async function weightErrors(
  checkpoint: Checkpoint,
  formats: readonly ExpertFormat[],
): Promise<ErrorTable> {
  const table = new ErrorTable();
  const { config } = checkpoint;
  for (const layer of moeLayers(config)) {
    for (let id = 0; id < config.numExperts; id++) {
      const expert = await readExpert(checkpoint, layer, id);
      for (const format of formats) {
        const packed = packExpert(`layer ${layer} expert ${id}`, expert, config, format);
        for (const part of ["gate", "up", "down"] as const) {
          const kept = unpackMatrix(format, packed[part], expert[part].shape[1]);
          table.of(layer, format).add(toF32(plainFloats(expert[part])), kept);
        }
      }
    }
  }
  return table;
}

/** `runExperts` over a device with experts in f32, which notes how far devices in other formats are from it. */
export function comparingExperts(
  exact: ExpertDevice,
  others: ReadonlyMap<ExpertFormat, ExpertDevice>,
  table: ErrorTable,
): RunExperts {
  return async (layer, { hiddenSize }, routing) => {
    const { rows, routing: chosen } = await routing.read();
    const run = (device: ExpertDevice) =>
      runInParts(device, layer, hiddenSize, rows, chosen.ids, chosen.weights);
    const values = await run(exact);
    for (const [format, device] of others) table.of(layer, format).add(values, await run(device));
    return { kind: "host", values };
  };
}
