/** The local half of `runExperts` on an expert device of this process. */

import { type ExpertDevice, runInParts } from "../../core/expert-device.ts";
import type { FormatOf } from "../../core/expert-format.ts";
import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { type ExpertLoad, loadExperts } from "../../core/load-experts.ts";
import type { RunExperts } from "./run-experts.ts";

/** Called after each expert that was loaded. */
export type OnExpert = (loaded: number, total: number) => void;

/** Experts on a device of their own in this process, as the CPU's; the device stays the caller's. Rejects as loading does. */
export async function createLocalDeviceExperts(
  device: ExpertDevice,
  checkpoint: Checkpoint,
  formatOf: FormatOf,
  onExpert?: OnExpert,
): Promise<RunExperts> {
  await loadAllExperts(checkpoint, device, formatOf, onExpert);
  return async (layer, { hiddenSize }, routing) => {
    const { rows, routing: chosen } = await routing.read();
    const values = await runInParts(device, layer, hiddenSize, rows, chosen.ids, chosen.weights);
    return { kind: "host", values };
  };
}

/** Loads every expert of the model into the slot of its id. */
export async function loadAllExperts(
  checkpoint: Checkpoint,
  device: Pick<ExpertDevice, "allocate" | "loadPacked" | "settled">,
  formatOf: FormatOf,
  onExpert: OnExpert | undefined,
): Promise<void> {
  const { numExperts } = checkpoint.config;
  const layers = moeLayers(checkpoint.config);
  const loads: ExpertLoad[] = [];
  for (const layer of layers) {
    const formats = Array.from({ length: numExperts }, (_, expert) => formatOf(layer, expert));
    device.allocate(layer, formats);
    for (const [slot, format] of formats.entries())
      loads.push({ layer, expert: slot, slot, format });
  }
  let loaded = 0;
  await loadExperts(loads, {
    sizes: checkpoint.config,
    read: (layer, expert) => readExpert(checkpoint, layer, expert),
    device,
    onExpert: () => onExpert?.(++loaded, loads.length),
  });
}
