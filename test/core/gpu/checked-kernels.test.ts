import assert from "node:assert/strict";
import { test } from "node:test";

import { firstThatConforms } from "../../../core/gpu/checked-kernels.ts";
import { ConformanceError } from "../../../core/gpu/conformance.ts";
import { KernelError } from "../../../core/gpu/kernel.ts";

const SOURCES = ["kept", "measured", "plain"];
const refusal = new ConformanceError("gemm", "an adapter", 1, 1e-6);

/** The source that is chosen and those refused, where checks fail as told. */
async function choose(failures: Readonly<Record<string, Error>>, sources = SOURCES) {
  const refused: string[] = [];
  const { source } = await firstThatConforms(
    sources,
    async (name) => (name === "none" ? undefined : name),
    async (name) => {
      if (name in failures) throw failures[name];
    },
    async (name) => {
      await Promise.resolve();
      refused.push(name);
    },
  );
  return { source, refused };
}

test("kept kernels that are refused are measured again, then plain ones compute", async () => {
  assert.deepEqual(await choose({}), { source: "kept", refused: [] });
  const kept = new KernelError("kernel gemm does not compile");
  assert.deepEqual(await choose({ kept }), { source: "measured", refused: ["kept"] });
  assert.deepEqual(await choose({ kept, measured: refusal }), {
    source: "plain",
    refused: ["kept", "measured"],
  });
  assert.deepEqual(await choose({}, ["none", "plain"]), { source: "plain", refused: [] });
});

test("plain kernels that are refused, and errors of another kind, are told", async () => {
  await assert.rejects(choose({ plain: refusal }, ["plain"]), refusal);
  const other = new Error("the device is lost");
  await assert.rejects(choose({ kept: other }), other);
});
