import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, it, test } from "node:test";

import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import type { ModelConfig } from "../../../core/model/config.ts";
import { ModelConfigError } from "../../../core/model/config-error.ts";
import type { JsonObject } from "../../../core/model/checkpoint/json-file.ts";
import { readModelConfig } from "../../../core/model/load-config.ts";
import { parseOverlay } from "../../../core/model/overlay.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { temporaryDir } from "./checkpoint/safetensors-writer.ts";

const tiny = await readModelConfig(TINY_MODEL);
/** Layer 1 has no experts; the others have 12. */
const config: ModelConfig = {
  ...tiny,
  layers: tiny.layers.map((_, i) => (i === 1 ? "dense" : "moe")),
};
const parse = (raw: JsonObject) => parseOverlay(raw, config, "/m/switchyard.json");

describe("an overlay", () => {
  it("gives layers and single experts their formats, and says nothing of the others", () => {
    const { formatOf } = parse({
      expertsBits: {
        0: 8,
        2: { 0: 16, 3: 4, 4: { bits: 4, group: 128 }, 11: "mxfp4", 5: 32 },
      },
    });
    assert.equal(formatOf(0, 0), "int8");
    assert.equal(formatOf(0, 11), "int8");
    assert.deepEqual(
      [0, 3, 4, 11, 5, 6].map((expert) => formatOf(2, expert)),
      ["f16", "int4-g32", "int4-g128", "mxfp4", "f32", undefined],
    );
    assert.equal(formatOf(1, 0), undefined);
    assert.equal(parse({}).formatOf(0, 0), undefined);
  });

  const refusals: [string, JsonObject, RegExp][] = [
    ["a key that it does not know", { experts: {} }, /an object with "expertsBits" alone/],
    [
      "bits that nothing has",
      { expertsBits: { 0: 5 } },
      /expertsBits\.0 is 5, expected bits: 32, 16/,
    ],
    ["a group of 4 bits that nothing has", { expertsBits: { 0: { bits: 4, group: 16 } } }, /bits/],
    ["an expert's bits that nothing has", { expertsBits: { 0: { 3: "q4" } } }, /expertsBits\.0/],
    ["a list", { expertsBits: [8, 8] }, /layer → bits, or layer → expert → bits/],
    [
      "a layer without experts",
      { expertsBits: { 1: 8 } },
      /layer is 1, expected a layer with experts/,
    ],
    ["a layer that is not there", { expertsBits: { 99: 8 } }, /layer is 99/],
    [
      "an expert that is not there",
      { expertsBits: { 0: { 12: 8 } } },
      /layer 0 expert is 12, expected an expert of 12/,
    ],
    ["a layer that is no number", { expertsBits: { "-1": 8 } }, /expertsBits/],
  ];
  for (const [what, raw, text] of refusals) {
    it(`with ${what} is refused by name`, () => {
      assert.throws(
        () => parse(raw),
        (error) =>
          error instanceof ModelConfigError &&
          error.message.startsWith("/m/switchyard.json: ") &&
          text.test(error.message),
      );
    });
  }
});

test("a directory's overlay is part of the model's hash, by its content", async (t) => {
  const dir = await temporaryDir(t);
  await cp(TINY_MODEL, dir, { recursive: true });
  const hashWith = async (text?: string) => {
    if (text !== undefined) await writeFile(join(dir, "switchyard.json"), text);
    const checkpoint = await openCheckpoint(dir);
    await checkpoint.close();
    return checkpoint;
  };
  const plain = await hashWith();
  assert.equal(plain.overlay, undefined);
  const first = await hashWith('{"expertsBits": {"0": 8, "2": 4}}');
  assert.equal(first.overlay?.formatOf(2, 0), "int4-g32");
  const same = await hashWith('{"expertsBits":{"2":4,"0":8}}');
  const other = await hashWith('{"expertsBits": {"0": 8, "2": 8}}');
  assert.equal(same.modelHash, first.modelHash);
  assert.equal(new Set([plain, first, other].map(({ modelHash }) => modelHash)).size, 3);
  await assert.rejects(
    hashWith('{"expertsBits": {"0": 7}}'),
    /switchyard\.json: expertsBits\.0 is 7/,
  );
});
