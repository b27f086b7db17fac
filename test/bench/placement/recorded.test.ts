/** What placements must be worth on the recorded routing, over some of the rows of `npm run bench -- placement`. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { imbalanceRows, type RowSetting } from "../../../bench/placement/imbalance.ts";
import { traffics } from "../../../bench/placement/routed-load.ts";
import { compareRows } from "../../../bench/placement/rows.ts";

/** How much worse than EPLB at equal memory a row may be. */
const BEHIND = 0.005;

/** Rows with and without second copies and slower shards, the one of all among them that ours is furthest behind in. */
const ROWS: readonly RowSetting[] = [
  { traffic: "same task: law", numShards: 8, redundancy: 0.125, speeds: "equal" },
  { traffic: "same task: intent", numShards: 16, redundancy: 0, speeds: "equal" },
  { traffic: "same task: summary", numShards: 8, redundancy: 0.25, speeds: "unequal" },
];

test("planned on the past, ours is as even as EPLB on what came next in every row, and evener on average", () => {
  const names = new Set(ROWS.map(nameOf));
  const rows = [...imbalanceRows((setting) => names.has(nameOf(setting)))];
  assert.equal(rows.length, ROWS.length);
  for (const kind of ["windows", "steps"] as const) {
    for (const row of rows) {
      const { ours, eplb } = row[kind];
      assert.ok(ours <= eplb + BEHIND, `${nameOf(row)}, ${kind}: ${ours}, EPLB ${eplb}`);
    }
    const ahead = rows.reduce((sum, row) => sum + row[kind].eplb - row[kind].ours, 0);
    // EPLB knows nothing of slower shards, and shares copies evenly: the mean is well ahead.
    assert.ok(ahead / rows.length > 0.05, `${kind}: ${ahead / rows.length}`);
  }
});

test("experts that tokens choose together share shards, which saves rows on what came next", () => {
  const { judged } = traffics().find(({ name }) => name === "same task: law")!;
  const { apart, together } = compareRows(judged.slice(0, 1), 4);
  const saved = 1 - together.rows / apart.rows;
  assert.ok(
    saved > 0.01,
    `${apart.rows} rows per token and layer, with co-activation ${together.rows}`,
  );
});

function nameOf({ traffic, numShards, redundancy, speeds }: RowSetting): string {
  return `${traffic}, ${numShards} shards ${speeds}, ${redundancy}`;
}
