/** From rows and logical expert ids to partial sums on the device. */

import { NO_SLOT, runInParts } from "../core/expert-device.ts";
import type { DispatchRows } from "../core/wire.ts";
import { DispatchRefusedError, NO_EXPERT } from "../core/wire.ts";
import { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import type { HeldLayer } from "./residency.ts";

/** Rows of one layer with device slots instead of logical experts. */
export interface SlotRows {
  /** [numRows, hiddenSize] */
  readonly rows: Float32Array;
  /** [numRows, topK]; NO_SLOT where the row's expert is on another shard. */
  readonly slots: Uint32Array;
  /** [numRows, topK] */
  readonly topkWeights: Float32Array;
}

/** Replaces logical expert ids by slots. Throws DispatchRefusedError EXPERT_NOT_HELD naming layer and expert. */
export function toSlots(layer: number, dispatch: DispatchRows, held: HeldLayer): SlotRows {
  const { rows, expertIds, topkWeights } = dispatch;
  const slots = new Uint32Array(expertIds.length);
  for (let i = 0; i < expertIds.length; i++) {
    const expertId = expertIds[i];
    const slot = expertId === NO_EXPERT ? NO_SLOT : held.slots[expertId];
    if (expertId !== NO_EXPERT && (slot === undefined || slot === NO_SLOT)) {
      throw new DispatchRefusedError(
        DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD,
        `layer ${layer} expert ${expertId}: the shard does not hold it`,
      );
    }
    slots[i] = slot;
  }
  return { rows, slots, topkWeights };
}

/** Partial sums of dispatches that run together, one array [numRows, hiddenSize] for each. */
export async function runFfn(
  layer: number,
  hiddenSize: number,
  dispatches: readonly SlotRows[],
  { device }: HeldLayer,
): Promise<Float32Array[]> {
  const { rows, slots, topkWeights } = concat(dispatches);
  const sums = await runInParts(device, layer, hiddenSize, rows, slots, topkWeights);
  let offset = 0;
  return dispatches.map((dispatch) => {
    const end = offset + dispatch.rows.length;
    const part = sums.subarray(offset, end);
    offset = end;
    return part;
  });
}

function concat(dispatches: readonly SlotRows[]): SlotRows {
  if (dispatches.length === 1) return dispatches[0];
  const numValues = dispatches.reduce((sum, { rows }) => sum + rows.length, 0);
  const numIds = dispatches.reduce((sum, { slots }) => sum + slots.length, 0);
  const all = {
    rows: new Float32Array(numValues),
    slots: new Uint32Array(numIds),
    topkWeights: new Float32Array(numIds),
  };
  let row = 0;
  let id = 0;
  for (const { rows, slots, topkWeights } of dispatches) {
    all.rows.set(rows, row);
    all.slots.set(slots, id);
    all.topkWeights.set(topkWeights, id);
    row += rows.length;
    id += slots.length;
  }
  return all;
}
