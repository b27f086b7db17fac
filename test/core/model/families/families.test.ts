// Every family's golden checkpoint: its config, and the tensors that it asks for.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { expectedTensors, modelFamilies } from "../../../../core/model/families/families.ts";
import {
  readExpert,
  readLayer,
  readModelWeights,
} from "../../../../core/model/checkpoint/weights.ts";
import { decodeSafetensors } from "../checkpoint/safetensors-writer.ts";

const goldens = join(import.meta.dirname, "../../../goldens");
const names = (await readdir(goldens)).filter((name) =>
  existsSync(join(goldens, name, "config.json")),
);

test("there is a golden of every family", () => {
  for (const { modelType } of modelFamilies) assert.ok(names.includes(modelType), modelType);
});

for (const name of names) {
  test(`${name}: the config asks for the published tensors, and all of them are read`, async (t) => {
    const checkpoint = await openCheckpoint(join(goldens, name));
    t.after(() => checkpoint.close());
    const { config } = checkpoint;
    const published = await decodeSafetensors(join(goldens, name, "model.safetensors"));
    const ownTensors = Array.from(published).filter(
      ([tensor]) => !tensor.startsWith("model.layers.3."),
    );
    assert.deepEqual(
      Object.fromEntries(expectedTensors(config)),
      Object.fromEntries(
        ownTensors.map(([tensor, { dtype, shape }]) => [tensor, { dtype, shape }]),
      ),
    );
    assert.deepEqual(checkpoint.unexpectedTensors, []);
    await readModelWeights(checkpoint);
    for (const [layer, kind] of config.layers.entries()) {
      const weights = await readLayer(checkpoint, layer);
      assert.equal(weights.ffn.kind, kind);
      assert.equal(weights.attention.kind, config.attention.kind);
      if (kind === "dense") continue;
      for (let expert = 0; expert < config.numExperts; expert++) {
        const { gate, up, down } = await readExpert(checkpoint, layer, expert);
        const { hiddenSize, expertIntermediateSize: width } = config;
        assert.deepEqual(gate.shape, [width, hiddenSize]);
        assert.deepEqual(up.shape, [width, hiddenSize]);
        assert.deepEqual(down.shape, [hiddenSize, width]);
      }
    }
  });
}
