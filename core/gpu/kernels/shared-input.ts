/** How the invocations of a matrix kernel come by the rows of its input, of which all of them need every value. */

import type { AdapterOffers } from "../device.ts";

/**
 * - `own`: each invocation loads all values; where one address for all costs what one load costs
 * - a subgroup's size: its invocations load a value each and tell it to the others. Software Vulkan loads for one lane
 *   after the other, so that this halves the time of a product.
 */
export type InputLoads = "own" | 4 | 8;

/** What suits an adapter. */
export function inputLoads(offers: AdapterOffers): InputLoads {
  const { software, subgroups, minSubgroupSize: size, maxSubgroupSize } = offers;
  const fixed = software && subgroups && size === maxSubgroupSize;
  return fixed && (size === 4 || size === 8) ? size : "own";
}

/** WGSL of a kernel whose invocations all need the rows of the binding `x`. All of a subgroup must get to `addEight`. */
export interface SharedInput {
  /** Directives before everything else. */
  readonly enable: string;
  /** Further parameters of the entry point. */
  readonly parameters: string;
  /** Element type of the binding `x`. */
  readonly element: "f32" | "vec4<f32>";
  /** Where a row of `columns` values begins, for `row[r]`. */
  readonly rowStart: (row: string, columns: number) => string;
  /**
   * Adds to `sum[r]` for all ROWS the products of eight number i of row r with those of four rows of weights, the
   * Eights w0 … w3.
   */
  readonly addEight: (sum: string) => string;
}

const OWN: SharedInput = {
  enable: "",
  parameters: "",
  element: "vec4<f32>",
  rowStart: (row, columns) => `${row} * ${columns / 4}u`,
  addEight: (sum) => /* wgsl */ `
      for (var r = 0u; r < ROWS; r++) {
        let a = x[row[r] + i * 2u];
        let b = x[row[r] + i * 2u + 1u];
        ${sum}[r] += vec4<f32>(
          dot(w0.a, a) + dot(w0.b, b), dot(w1.a, a) + dot(w1.b, b),
          dot(w2.a, a) + dot(w2.b, b), dot(w3.a, a) + dot(w3.b, b));
      }`,
};

const EIGHT = [0, 1, 2, 3, 4, 5, 6, 7] as const;
const PARTS = ["a.x", "a.y", "a.z", "a.w", "b.x", "b.y", "b.z", "b.w"] as const;

function inSubgroups(size: 4 | 8): SharedInput {
  const loads = EIGHT.filter((j) => j % size === 0);
  const steps = EIGHT.map((j) => {
    const [w0, w1, w2, w3] = [0, 1, 2, 3].map((row) => `w${row}.${PARTS[j]}`);
    const value = `subgroupBroadcast(v${j - (j % size)}, ${j % size}u)`;
    return `t += vec4<f32>(${w0}, ${w1}, ${w2}, ${w3}) * ${value};`;
  });
  return {
    enable: "enable subgroups;",
    parameters: ", @builtin(subgroup_invocation_id) lane: u32",
    element: "f32",
    rowStart: (row, columns) => `${row} * ${columns}u + lane`,
    addEight: (sum) => /* wgsl */ `
      for (var r = 0u; r < ROWS; r++) {
        ${loads.map((j) => `let v${j} = x[row[r] + i * 8u + ${j}u];`).join("\n        ")}
        var t = ${sum}[r];
        ${steps.join("\n        ")}
        ${sum}[r] = t;
      }`,
  };
}

const IN_SUBGROUPS = { 4: inSubgroups(4), 8: inSubgroups(8) } as const;

/** The WGSL for a way of loading. */
export function sharedInput(loads: InputLoads): SharedInput {
  return loads === "own" ? OWN : IN_SUBGROUPS[loads];
}
