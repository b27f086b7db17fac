/**
 * Which experts one token chooses together: in one layer, and in a layer and the next. Bounded memory. Pure.
 *
 * A model whose pairs fit PAIR_CELLS has a cell for each pair of every layer. A larger one counts some layers at a time,
 * as many as fit, for TURN_TOKENS tokens; then each expert's TOP_PARTNERS most frequent partners go to a list, beside
 * half of what the list had, and it is the next layers' turn. So what is in a list is counted exactly, on a part of the
 * tokens: at 61 layers × 256 experts on 4 of 60 for pairs of layers and on 8 of 61 within a layer, in 9.1 MB.
 */

import type { RoutingShape } from "./routed-step.ts";

/** Pairs that are counted: of experts of one layer, and of an expert and one of the next MoE layer. */
export const PAIR_KINDS = ["together", "next"] as const;

/** One of the PAIR_KINDS. */
export type PairKind = (typeof PAIR_KINDS)[number];

/** Cells of a kind at a time, where one layer alone needs no more: 2 MB. */
const PAIR_CELLS = 2 ** 18;

/** Partners that are kept of each expert where not all are. */
export const TOP_PARTNERS = 16;

/** Tokens after which other layers are counted. */
export const TURN_TOKENS = 4096;

/** No expert: the id of an empty entry. */
export const NO_PARTNER = 0xffff;

/** Each expert's most frequent partners. Layers are MoE layers; of "next", the last has none and is left out. */
export interface PairLists {
  /** Entries per expert. */
  readonly topN: number;
  /** Most frequent first, then NO_PARTNER [numLayers, numExperts, topN]. */
  readonly partners: Uint16Array;
  /** Tokens that chose both [numLayers, numExperts, topN]. */
  readonly counts: Float64Array;
  /** All pairs of the tokens that were counted, whether in the lists or not [numLayers]. */
  readonly sums: Float64Array;
}

/** Layers that a kind counts pairs in. */
export function pairLayers(shape: RoutingShape, kind: PairKind): number {
  return Math.max(0, shape.layers.length - (kind === "next" ? 1 : 0));
}

/** Cells of a layer: an expert and each of the next layer, or two of the same in either order. */
export function pairCells({ numExperts }: RoutingShape, kind: PairKind): number {
  return kind === "next" ? numExperts ** 2 : (numExperts * (numExperts - 1)) / 2;
}

/** Whether each pair of a kind has a cell of its own. */
export function countsEveryPair(shape: RoutingShape, kind: PairKind): boolean {
  return pairLayers(shape, kind) * pairCells(shape, kind) <= PAIR_CELLS;
}

/** Pairs of one token in a layer. */
function pairsPerToken({ topK }: RoutingShape, kind: PairKind): number {
  return kind === "next" ? topK ** 2 : (topK * (topK - 1)) / 2;
}

/** Cell of two experts of a layer, whichever is named first; `low` and `high` differ. */
function togetherCell(one: number, other: number, numExperts: number): number {
  const low = Math.min(one, other);
  const high = Math.max(one, other);
  return low * numExperts - (low * (low + 3)) / 2 + high - 1;
}

/** Empty lists. */
export function emptyLists(numLayers: number, numExperts: number, topN: number): PairLists {
  const entries = numLayers * numExperts * topN;
  return {
    topN,
    partners: new Uint16Array(entries).fill(NO_PARTNER),
    counts: new Float64Array(entries),
    sums: new Float64Array(numLayers),
  };
}

/** Pairs of one kind since the process started. */
export class PairCounts {
  readonly kind: PairKind;
  /** Layers that have cells at a time. */
  readonly span: number;
  /** Cells of the layers from `first` on: exact, and they only grow, where every pair is counted [span, pairCells]. */
  readonly cells: Float64Array;
  /** What earlier turns found; undefined where every pair is counted. */
  readonly lists: PairLists | undefined;
  /** Layers whose lists changed and were not taken since. */
  readonly changed = new Set<number>();
  readonly #shape: RoutingShape;
  readonly #numLayers: number;
  readonly #perLayer: number;
  #first = 0;
  #tokens = 0;
  /** Layers whose lists were made of the cells; undefined while the cells are counted in. */
  #listed: number | undefined;

  constructor(shape: RoutingShape, kind: PairKind) {
    this.#shape = shape;
    this.kind = kind;
    this.#numLayers = pairLayers(shape, kind);
    this.#perLayer = pairCells(shape, kind);
    const everyPair = countsEveryPair(shape, kind);
    const fit = Math.max(1, Math.floor(PAIR_CELLS / Math.max(1, this.#perLayer)));
    this.span = everyPair ? this.#numLayers : fit;
    this.cells = new Float64Array(this.span * this.#perLayer);
    this.lists = everyPair
      ? undefined
      : emptyLists(this.#numLayers, shape.numExperts, TOP_PARTNERS);
  }

  /** Memory of the counts. */
  get bytes(): number {
    const { partners, counts, sums } = this.lists ?? {};
    return [this.cells, partners, counts, sums].reduce(
      (sum, one) => sum + (one?.byteLength ?? 0),
      0,
    );
  }

  /**
   * Adds tokens of a layer.
   * @param ids their experts [numTokens, topK]
   * @param after their experts in the next MoE layer [numTokens, topK]; for "next" alone
   */
  add(layer: number, numTokens: number, ids: Uint32Array, after: Uint32Array = ids): void {
    const row = layer - this.#first;
    if (row < 0 || row >= this.span || this.#listed !== undefined) return;
    const { numExperts, topK } = this.#shape;
    const { cells } = this;
    const base = row * this.#perLayer;
    const end = numTokens * topK;
    for (let token = 0; token < end; token += topK) {
      for (let i = token; i < token + topK; i++) {
        if (this.kind === "next") {
          const from = base + ids[i] * numExperts;
          for (let j = token; j < token + topK; j++) cells[from + after[j]]++;
        } else {
          for (let j = i + 1; j < token + topK; j++) {
            if (ids[i] !== ids[j]) cells[base + togetherCell(ids[i], ids[j], numExperts)]++;
          }
        }
      }
    }
  }

  /** Ends a step: after enough tokens the layers' lists are made, one in each step, and it is other layers' turn. */
  endStep(numTokens: number): void {
    if (this.lists === undefined) return;
    if (this.#listed === undefined) {
      this.#tokens += numTokens;
      if (this.#tokens < TURN_TOKENS) return;
      this.#listed = 0;
    }
    const row = this.#listed++;
    const layer = this.#first + row;
    const cells = this.cells.subarray(row * this.#perLayer, (row + 1) * this.#perLayer);
    if (listLayer(this.lists, layer, cells, this.#shape, this.kind, 0.5)) this.changed.add(layer);
    if (this.#listed < Math.min(this.span, this.#numLayers - this.#first)) return;
    this.cells.fill(0);
    this.#tokens = 0;
    this.#listed = undefined;
    this.#first += this.span;
    if (this.#first >= this.#numLayers) this.#first = 0;
  }
}

/** Lists of the cells of all layers [numLayers, pairCells]; `topN` partners of each expert. */
export function listsOfCells(
  shape: RoutingShape,
  kind: PairKind,
  cells: Float64Array,
  topN: number,
): PairLists {
  const numLayers = pairLayers(shape, kind);
  const perLayer = pairCells(shape, kind);
  const lists = emptyLists(numLayers, shape.numExperts, Math.min(topN, shape.numExperts));
  for (let l = 0; l < numLayers; l++) {
    listLayer(lists, l, cells.subarray(l * perLayer, (l + 1) * perLayer), shape, kind, 0);
  }
  return lists;
}

/** Lists that add up to what several hold; each layer's largest counts are kept. */
export function sumLists(
  numExperts: number,
  lists: readonly PairLists[],
  numLayers: number,
  topN: number,
): PairLists {
  const sum = emptyLists(numLayers, numExperts, topN);
  const counts = new Float64Array(numExperts);
  for (let row = 0; row < numLayers * numExperts; row++) {
    counts.fill(0);
    for (const one of lists) addRow(counts, one, row, 1);
    keepLargest(sum, row, counts);
  }
  for (const one of lists) for (let l = 0; l < numLayers; l++) sum.sums[l] += one.sums[l];
  return sum;
}

/**
 * Tokens of a step that choose both experts of a pair, for each expert its most frequent partners, in a layer with
 * counts [numLayers, numExperts, topN].
 */
export function togetherPairs(
  lists: PairLists,
  shape: RoutingShape,
  tokensPerStep: number,
): { readonly topN: number; readonly partners: Uint16Array; readonly tokens: Float64Array } {
  const { topN, partners, counts, sums } = lists;
  const perLayer = shape.numExperts * topN;
  const ofToken = pairsPerToken(shape, "together");
  const tokens = counts.map((count, i) => {
    const counted = sums[Math.floor(i / perLayer)] / ofToken;
    return counted === 0 ? 0 : (count / counted) * tokensPerStep;
  });
  return { topN, partners, tokens };
}

/** Adds a layer's cells to its lists, whose counts weigh `kept`; false where there is nothing to add. */
function listLayer(
  lists: PairLists,
  layer: number,
  cells: Float64Array,
  { numExperts }: RoutingShape,
  kind: PairKind,
  kept: number,
): boolean {
  const gained = cells.reduce((sum, count) => sum + count, 0);
  if (gained === 0) return false;
  lists.sums[layer] = lists.sums[layer] * kept + gained;
  const counts = new Float64Array(numExperts);
  for (let expert = 0; expert < numExperts; expert++) {
    for (let other = 0; other < numExperts; other++) {
      counts[other] =
        kind === "next"
          ? cells[expert * numExperts + other]
          : expert === other
            ? 0
            : cells[togetherCell(expert, other, numExperts)];
    }
    const row = layer * numExperts + expert;
    if (kept > 0) addRow(counts, lists, row, kept);
    keepLargest(lists, row, counts);
  }
  return true;
}

/** Adds the counts of one expert's list, by partner. */
function addRow(
  sums: Float64Array,
  { topN, partners, counts }: PairLists,
  row: number,
  weight: number,
) {
  for (let i = row * topN; i < (row + 1) * topN && partners[i] !== NO_PARTNER; i++) {
    sums[partners[i]] += weight * counts[i];
  }
}

/** Replaces one expert's list by its largest counts, ties by lower partner. */
function keepLargest({ topN, partners, counts }: PairLists, row: number, all: Float64Array): void {
  const from = row * topN;
  let held = 0;
  for (let other = 0; other < all.length; other++) {
    const count = all[other];
    if (count === 0 || (held === topN && count <= counts[from + topN - 1])) continue;
    let at = held < topN ? held++ : topN - 1;
    for (; at > 0 && counts[from + at - 1] < count; at--) {
      counts[from + at] = counts[from + at - 1];
      partners[from + at] = partners[from + at - 1];
    }
    counts[from + at] = count;
    partners[from + at] = other;
  }
  counts.fill(0, from + held, from + topN);
  partners.fill(NO_PARTNER, from + held, from + topN);
}
