import assert from "node:assert/strict";
import { test } from "node:test";

import { productOf, WIDTHS } from "../../../bench/kernels/floors.ts";
import { resultCells, tableHead, tableLine } from "../../../bench/kernels/table.ts";

const RATES = { bytesPerSecond: 1e12, operationsPerSecond: 50e12 };
const PRODUCT = productOf("down", WIDTHS["deepseek-moe-16b"], 1);
const CELL = {
  widths: "deepseek-moe-16b",
  kernel: "down",
  format: "f16",
  rows: 1,
  product: PRODUCT,
} as const;

test("a product that takes twice its bytes' floor stands at half of it and of the copy rate", () => {
  const bytes = 6 * 2048 * 1408 * 2 + 4 * 6 * (1408 + 2048);
  const outcome = { kind: "timed", name: "matvec", seconds: (2 * bytes) / 1e12 } as const;
  const cells = resultCells({ ...CELL, outcome }, RATES);
  assert.deepEqual(cells.slice(0, 5), ["deepseek-moe-16b", "down", "f16", "1", "6"]);
  assert.equal(cells[6], "500", "GB/s");
  assert.equal(cells[7], "50 %");
  assert.match(cells[10], /bytes$/);
  assert.equal(cells[11], "50 %");
  assert.equal(cells[12], "matvec");
});

test("a line has as many cells as the head, also where nothing was measured, and says why", () => {
  const outcome = { kind: "skipped", reason: "one expert exceeds a binding" } as const;
  const line = tableLine({ ...CELL, outcome }, RATES);
  const columns = (text: string) => text.split("|").length;
  assert.equal(columns(line), columns(tableHead().split("\n")[0]));
  assert.match(line, /one expert exceeds a binding/);
});
