/**
 * Bindings that every kernel over a bank of experts declares, used or not, so that one way of binding serves all:
 *
 * 0 counts; 1 input; 2 weights of the bank's slots, one below the other; 3 output; 4 routing or tiles (see tile.ts);
 * 5 scales u32, as the format has them; 6 places u32 [numSlots]: a slot's index in the bank, NONE in another bank;
 * 7 biases f32, of the bank's slots one after the other
 */

import { type GroupRows, LOOKUP, type Lookup } from "./tile.ts";

/** How a kernel over experts finds its rows. */
export type ExpertLookup = Extract<Lookup, { kind: "direct" | "grouped" }>;

/** How a kernel over experts, or over one FFN that all rows take, finds its rows. */
export type FfnLookup = ExpertLookup | { readonly kind: "tokens"; readonly rows: 1 | GroupRows };

/**
 * WGSL of bindings 4 to 7, of tile.ts's lookup, and of `tile_place(tile)`: a tile's slot as its index in the bank, or NONE.
 * One FFN that all rows take has bindings 0 to 3 alone, neither scales nor biases.
 */
export function expertBindings(lookup: FfnLookup): string {
  if (lookup.kind === "tokens") {
    return /* wgsl */ `
${LOOKUP.tokens}
fn tile_place(tile: u32) -> u32 { return 0u; }`;
  }
  return /* wgsl */ `
${LOOKUP[lookup.kind]}
@group(0) @binding(5) var<storage, read> scales: array<u32>;
@group(0) @binding(6) var<storage, read> places: array<u32>;
@group(0) @binding(7) var<storage, read> biases: array<f32>;
fn tile_place(tile: u32) -> u32 {
  let slot = tile_slot(tile);
  if (slot == NONE) { return NONE; }
  return places[slot];
}`;
}
