import assert from "node:assert/strict";
import { test } from "node:test";

import { type ExpertFormat, formatsAmong } from "../../core/expert-format.ts";

test("the formats among experts come commonest first, of equally common ones the wider", () => {
  const formats: readonly ExpertFormat[] = ["f16", "int4-g32", "int4-g32", "int8"];
  assert.deepEqual(
    formatsAmong((_, expert) => formats[expert], [0, 1], formats.length),
    ["int4-g32", "f16", "int8"],
  );
});
