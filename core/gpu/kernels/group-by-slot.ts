import type { Kernel } from "../kernel.ts";
import { COUNTS, type StepSizes } from "./counts.ts";
import { GROUP_ROWS, type GroupRows, groupStride } from "./tile.ts";

/** Slots of a layer at most unless told otherwise. */
export const MAX_SLOTS = 1024;

const WORKGROUP = 64;

/**
 * Sorts the pairs of a batch by slot into tiles of `rows` pairs of one slot each.
 *
 * 0 counts; 1 routing u32 [numRows, topK, 2] (slot or NONE, weight bits); 2 tiles u32 [maxGroupedTiles, 1 + rows]
 * `numSlots` is at most maxSlots: workgroup memory holds two counters for each.
 * Which of a slot's tiles a pair comes to is not determined; nothing that reads the tiles depends on it.
 */
export function groupBySlot(rows: GroupRows = GROUP_ROWS, maxSlots = MAX_SLOTS): Kernel<StepSizes> {
  const stride = groupStride(rows);
  return {
    label: `group-by-slot ×${rows} of ${maxSlots} slots`,
    workgroupBytes: 8 * maxSlots + 4,
    grid: (sizes) => [sizes.tokens === 0 ? 0 : 1, 1, 1],
    wgsl: /* wgsl */ `
${COUNTS}
const LANES = ${WORKGROUP}u;
@group(0) @binding(1) var<storage, read> routing: array<vec2<u32>>;
@group(0) @binding(2) var<storage, read_write> tiles: array<u32>;
var<workgroup> held: array<atomic<u32>, ${maxSlots}>;
var<workgroup> start: array<u32, ${maxSlots}>;
var<workgroup> total: u32;

@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) lane: u32) {
  let pairs = counts.tokens * counts.top_k;
  let num_slots = counts.num_slots;
  for (var s = lane; s < num_slots; s += LANES) { atomicStore(&held[s], 0u); }
  workgroupBarrier();
  for (var p = lane; p < pairs; p += LANES) {
    let slot = routing[p].x;
    if (slot < num_slots) { atomicAdd(&held[slot], 1u); }
  }
  workgroupBarrier();
  if (lane == 0u) {
    var next = 0u;
    for (var s = 0u; s < num_slots; s++) {
      start[s] = next;
      next += (atomicLoad(&held[s]) + ${rows - 1}u) / ${rows}u;
    }
    total = next;
  }
  workgroupBarrier();
  // Every tile that the matrix kernels will look at: named by its slot, all places empty.
  let limit = (pairs + ${rows - 1}u) / ${rows}u + min(num_slots, pairs);
  for (var t = total + lane; t < limit; t += LANES) { tiles[t * ${stride}u] = NONE; }
  for (var s = lane; s < num_slots; s += LANES) {
    let used = (atomicLoad(&held[s]) + ${rows - 1}u) / ${rows}u;
    for (var t = start[s]; t < start[s] + used; t++) {
      tiles[t * ${stride}u] = s;
      for (var r = 1u; r <= ${rows}u; r++) { tiles[t * ${stride}u + r] = NONE; }
    }
  }
  workgroupBarrier();
  for (var s = lane; s < num_slots; s += LANES) { atomicStore(&held[s], 0u); }
  storageBarrier();
  workgroupBarrier();
  for (var p = lane; p < pairs; p += LANES) {
    let slot = routing[p].x;
    if (slot >= num_slots) { continue; }
    let at = atomicAdd(&held[slot], 1u);
    tiles[(start[slot] + at / ${rows}u) * ${stride}u + 1u + at % ${rows}u] = p;
  }
}`,
  };
}
