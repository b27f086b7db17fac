/** Rates of all contenders as Markdown tables: both sides of every ratio. Pure. */

import { median } from "../load/statistics.ts";

/** Tokens per second of one contender with one load, one per round. */
export interface Rates {
  readonly contender: string;
  readonly load: string;
  readonly perRound: readonly number[];
}

/** A ratio that is aimed at: so many times the other's rate. */
export interface Aim {
  readonly what: string;
  readonly ours: { readonly contender: string; readonly load: string };
  readonly theirs: { readonly contender: string; readonly load: string };
  readonly atLeast: number;
}

/** A row per load, a column per contender: medians and, beside other contenders' ones, the first contender's rate over theirs. */
export function ratesTable(rates: readonly Rates[]): string {
  const contenders = [...new Set(rates.map(({ contender }) => contender))];
  const loads = [...new Set(rates.map(({ load }) => load))];
  const [own, ...others] = contenders;
  const rows = loads.map((load) => {
    const ownRates = find(rates, own, load);
    const cells = others.map((other) => {
      const theirs = find(rates, other, load);
      if (theirs === undefined || ownRates === undefined) return `${shown(theirs)} |`;
      return `${shown(theirs)} | ${ratioOf(ownRates, theirs).toFixed(2)}`;
    });
    return `| ${[load, shown(ownRates), ...cells].join(" | ")} |`;
  });
  const heads = ["tok/s", own, ...others.flatMap((other) => [other, "ratio"])];
  return [`| ${heads.join(" | ")} |`, `|${"---|".repeat(heads.length)}`, ...rows].join("\n");
}

/** A row per aim whose both sides were measured. */
export function aimsTable(rates: readonly Rates[], aims: readonly Aim[]): string {
  const rows = aims.flatMap(({ what, ours, theirs, atLeast }) => {
    const numerator = find(rates, ours.contender, ours.load);
    const denominator = find(rates, theirs.contender, theirs.load);
    if (numerator === undefined || denominator === undefined) return [];
    const ratio = ratioOf(numerator, denominator);
    const verdict = ratio >= atLeast ? "yes" : "no";
    return `| ${[what, shown(numerator), shown(denominator), ratio.toFixed(2), `≥ ${atLeast}`, verdict].join(" | ")} |`;
  });
  const heads = ["", "tok/s", "of tok/s", "ratio", "aim", "reached"];
  return [`| ${heads.join(" | ")} |`, `|${"---|".repeat(heads.length)}`, ...rows].join("\n");
}

function find(rates: readonly Rates[], contender: string, load: string): Rates | undefined {
  return rates.find((one) => one.contender === contender && one.load === load);
}

/** Median over rounds of the ratio within a round: both sides of it saw the same noise. */
function ratioOf(numerator: Rates, denominator: Rates): number {
  return median(numerator.perRound.map((rate, round) => rate / denominator.perRound[round]));
}

/** Median, and lowest to highest. */
function shown(rates: Rates | undefined): string {
  if (rates === undefined) return "";
  const { perRound } = rates;
  const digits = median(perRound) < 100 ? 1 : 0;
  const text = (rate: number) => rate.toFixed(digits);
  const range = `${text(Math.min(...perRound))}–${text(Math.max(...perRound))}`;
  return `${text(median(perRound))} (${range})`;
}
