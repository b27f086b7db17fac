/** Measurements of kernels as a Markdown table; pure. */

import type { ExpertFormat } from "../../core/expert-format.ts";
import {
  type DeviceRates,
  floorsOf,
  fractionOf,
  type KernelName,
  type Product,
  workOf,
} from "./floors.ts";

/** What one row of the table says. */
export interface KernelResult {
  readonly widths: string;
  readonly kernel: KernelName;
  readonly format: ExpertFormat;
  readonly rows: number;
  readonly product: Product;
  /** The fastest candidate and its time, or why there is none. */
  readonly outcome:
    | { readonly kind: "timed"; readonly name: string; readonly seconds: number }
    | { readonly kind: "skipped"; readonly reason: string };
}

const HEAD = [
  "widths",
  "kernel",
  "format",
  "rows",
  "experts",
  "ms",
  "GB/s",
  "of copy",
  "GFLOP/s",
  "of product",
  "floor ms",
  "of floor",
  "by",
];

function percent(fraction: number): string {
  return `${(100 * fraction).toFixed(fraction < 0.1 ? 1 : 0)} %`;
}

/** A number of about three digits. */
export function short(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

/** The cells of one result. */
export function resultCells(result: KernelResult, rates: DeviceRates): string[] {
  const { widths, kernel, format, rows, product, outcome } = result;
  const head = [widths, kernel, format, String(rows), String(product.matrices)];
  if (outcome.kind === "skipped") return [...head, "", "", "", "", "", "", "", outcome.reason];
  const work = workOf(product, format);
  const { memoryS, computeS } = floorsOf(work, rates);
  const floor = Math.max(memoryS, computeS);
  const { seconds, name } = outcome;
  return [
    ...head,
    short(seconds * 1e3),
    short(work.bytes / seconds / 1e9),
    percent(fractionOf(memoryS, seconds)),
    short(work.operations / seconds / 1e9),
    percent(fractionOf(computeS, seconds)),
    `${short(floor * 1e3)} ${memoryS > computeS ? "bytes" : "operations"}`,
    percent(fractionOf(floor, seconds)),
    name,
  ];
}

/** The table's head. */
export function tableHead(): string {
  return `| ${HEAD.join(" | ")} |\n|${HEAD.map(() => " --- |").join("")}`;
}

/** One line of the table. */
export function tableLine(result: KernelResult, rates: DeviceRates): string {
  return `| ${resultCells(result, rates).join(" | ")} |`;
}
