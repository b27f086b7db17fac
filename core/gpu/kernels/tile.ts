/**
 * Tiles: which rows an invocation of a matrix kernel works on, and with which matrix of a stack of matrices.
 * A *pair* is one row of hidden states with one of its experts: pair = row · topK + j.
 */

import { ceilDiv, type StepSizes } from "./counts.ts";
import type { SharedInput } from "./shared-input.ts";

/**
 * How a kernel finds its rows.
 * - `tokens`, `samples`: consecutive rows, one matrix
 * - `direct`: one pair per tile, its slot read from the routing; for few rows
 * - `grouped`: pairs of one slot together, as `group-by-slot` left them; for many rows
 */
export type Lookup =
  | { readonly kind: "tokens" | "samples"; readonly rows: 1 | GroupRows }
  | { readonly kind: "direct"; readonly rows: 1 }
  | { readonly kind: "grouped"; readonly rows: GroupRows };

/** Rows of a tile that `group-by-slot` can make. */
export type GroupRows = 2 | 4 | 8 | 16 | 32 | 64 | 128;

/** Rows of a tile that `group-by-slot` makes unless told otherwise. */
export const GROUP_ROWS = 4;

/** u32 of one grouped tile: its slot, then its pairs. */
export function groupStride(rows: GroupRows): number {
  return 1 + rows;
}

/** Tiles that grouping `rows` rows with `topK` experts each can need. */
export function maxGroupedTiles(
  rows: number,
  topK: number,
  numSlots: number,
  tileRows: GroupRows = GROUP_ROWS,
): number {
  const pairs = rows * topK;
  return ceilDiv(pairs, tileRows) + Math.min(numSlots, pairs);
}

export function numTiles(lookup: Lookup, sizes: StepSizes): number {
  switch (lookup.kind) {
    case "tokens":
      return ceilDiv(sizes.tokens, lookup.rows);
    case "samples":
      return ceilDiv(sizes.samples, lookup.rows);
    case "direct":
      return sizes.tokens * sizes.topK;
    case "grouped":
      return maxGroupedTiles(sizes.tokens, sizes.topK, sizes.numSlots, lookup.rows);
  }
}

/** WGSL of `tile_slot(tile)` and `tile_pair(tile, r)`, which give NONE where there is nothing to do, and of `row_of(pair)`. */
export const LOOKUP = {
  tokens: /* wgsl */ `
fn row_of(pair: u32) -> u32 { return pair; }
fn tile_slot(tile: u32) -> u32 { return 0u; }
fn tile_pair(tile: u32, r: u32) -> u32 {
  return select(NONE, tile * ROWS + r, tile * ROWS + r < counts.tokens);
}`,
  samples: /* wgsl */ `
fn row_of(pair: u32) -> u32 { return pair; }
fn tile_slot(tile: u32) -> u32 { return 0u; }
fn tile_pair(tile: u32, r: u32) -> u32 {
  return select(NONE, tile * ROWS + r, tile * ROWS + r < counts.samples);
}`,
  direct: /* wgsl */ `
@group(0) @binding(4) var<storage, read> tiles: array<u32>; // routing [numRows, topK] of (slot, weight bits)
fn row_of(pair: u32) -> u32 { return pair / counts.top_k; }
fn tile_slot(tile: u32) -> u32 { return tiles[tile * 2u]; }
fn tile_pair(tile: u32, r: u32) -> u32 { return tile; }`,
  grouped: /* wgsl */ `
@group(0) @binding(4) var<storage, read> tiles: array<u32>; // [numTiles] of (slot, ROWS pairs)
fn row_of(pair: u32) -> u32 { return pair / counts.top_k; }
fn tile_slot(tile: u32) -> u32 { return tiles[tile * (1u + ROWS)]; }
fn tile_pair(tile: u32, r: u32) -> u32 { return tiles[tile * (1u + ROWS) + 1u + r]; }`,
} as const;

/**
 * WGSL that multiplies the rows of a tile by four rows of weights: `acc[r]` from `row[r]`, where row r of the input
 * begins (SharedInput.rowStart), and `at0` … `at3`, where the rows of weights begin (in eights). One load of weights
 * serves all rows.
 */
export function fourColumns(input: SharedInput): string {
  return /* wgsl */ `
  var acc: array<vec4<f32>, ROWS>;
  for (var i = 0u; i < K8 + counts.zero; i++) {
    let w0 = weights8(at0 + i);
    let w1 = weights8(at1 + i);
    let w2 = weights8(at2 + i);
    let w3 = weights8(at3 + i);
    ${input.addEight("acc")}
  }`;
}
