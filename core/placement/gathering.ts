/**
 * Rows that are saved where experts that the same token chooses sit on one shard: its row goes there once. Counted in
 * pairs of experts beside what chance would bring, which the linear costs have already (objective.ts).
 */

import { NO_PARTNER, type Coactivation, type PlannerInput } from "./input.ts";
import type { Layer, Togetherness } from "./layer.ts";

/** What it is made of. */
export type TogetherInput = Pick<PlannerInput, "numExperts" | "topK" | "load" | "together">;

/** Which experts of a layer go together. */
type Groups = Omit<Togetherness, "perRow">;

/** Those of each input's layers. */
const known = new WeakMap<TogetherInput, (Groups | "nothing")[]>();

/**
 * Togetherness of the layer at `index`; undefined where nothing is known, or rows cost nothing. Made once for an input,
 * which is not to change.
 */
export function togetherness(
  input: TogetherInput,
  index: number,
  perRow: Float64Array,
): Togetherness | undefined {
  if (input.together === undefined || perRow.every((seconds) => seconds === 0)) return undefined;
  const ofLayers = known.get(input) ?? [];
  if (ofLayers.length === 0) known.set(input, ofLayers);
  const { numExperts, topK } = input;
  const ofLayer = input.load.subarray(index * numExperts, (index + 1) * numExperts);
  const groups = (ofLayers[index] ??=
    groupsOf(ofLayer, topK, partnersOf(input.together, index, numExperts)) ?? "nothing");
  return groups === "nothing" ? undefined : { ...groups, perRow };
}

/** The layer's part of the partners. */
function partnersOf(
  { topN, partners, tokens }: Coactivation,
  index: number,
  numExperts: number,
): Coactivation {
  const [from, to] = [index * numExperts * topN, (index + 1) * numExperts * topN];
  return { topN, partners: partners.subarray(from, to), tokens: tokens.subarray(from, to) };
}

function groupsOf(ofLayer: Float64Array, topK: number, together: Coactivation): Groups | undefined {
  const numExperts = ofLayer.length;
  const numTokens = ofLayer.reduce((sum, pairs) => sum + pairs, 0) / topK;
  if (numTokens === 0) return undefined;
  const tokens = new Float64Array(numExperts * numExperts);
  const partners = Array.from({ length: numExperts }, () => [] as number[]);
  for (let a = 0; a < numExperts; a++) {
    for (let n = 0; n < together.topN; n++) {
      const at = a * together.topN + n;
      const b = together.partners[at];
      if (b === NO_PARTNER || b === a || b >= numExperts) continue;
      const extra = together.tokens[at] - (ofLayer[a] * ofLayer[b]) / numTokens;
      tokens[a * numExperts + b] = extra;
      tokens[b * numExperts + a] = extra;
      if (extra > 0) partners[a].push(b);
    }
  }
  return { tokens, partners };
}

/**
 * Rows that a shard's row count is less than its pairs for each pair of experts that a token chooses there, where `part` of
 * all pairs go there: 1 where two of a token's experts meet, less where more do.
 */
export function rowsPerMeeting(topK: number, part: number): number {
  if (topK < 2) return 0;
  const met = topK * part - (1 - (1 - part) ** topK);
  return met / (((topK * (topK - 1)) / 2) * part ** 2);
}

/** Tokens whose experts meet on the shard, beyond chance; a copy among n counts an n-th. */
export function meetings({ held, holders, together, numExperts }: Layer, shard: number): number {
  if (together === undefined) return 0;
  const experts = held[shard];
  let sum = 0;
  for (let i = 1; i < experts.length; i++) {
    const from = experts[i] * numExperts;
    let withOthers = 0;
    for (let j = 0; j < i; j++) {
      withOthers += together.tokens[from + experts[j]] / holders[experts[j]].length;
    }
    sum += withOthers / holders[experts[i]].length;
  }
  return sum;
}
