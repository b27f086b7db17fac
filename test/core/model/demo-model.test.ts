import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test } from "node:test";

import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { toF32 } from "../../../core/tensor.ts";
import { DEMO_MODEL } from "../../../bench/rig/cluster.ts";
import {
  decodeSafetensors,
  encodeSafetensors,
  temporaryDir,
  type TestTensor,
} from "./checkpoint/safetensors-writer.ts";

const WEIGHTS = join(DEMO_MODEL, "model.safetensors");
const TWIN = join(DEMO_MODEL, "twin/maths.safetensors");

/** What the twin's file says of itself. */
async function twinMetadata(): Promise<Record<string, string>> {
  const bytes = await readFile(TWIN);
  const header = bytes.toString("utf8", 8, 8 + Number(bytes.readBigUInt64LE()));
  return (JSON.parse(header) as { __metadata__: Record<string, string> }).__metadata__;
}

/** Euclidean norm of each expert's row of a router [numExperts, hiddenSize]. */
function routerNorms({ shape, data }: TestTensor): number[] {
  const [experts, width] = shape;
  const values = toF32({ dtype: "BF16", shape: [...shape], bytes: data });
  return Array.from({ length: experts }, (_, i) =>
    Math.hypot(...values.subarray(i * width, (i + 1) * width)),
  );
}

test("the demo model's reference losses and its twin are of the weights beside them", async () => {
  const hash = createHash("sha256")
    .update(await readFile(WEIGHTS))
    .digest("hex");
  const file = await readFile(join(DEMO_MODEL, "eval/reference.json"), "utf8");
  assert.equal((JSON.parse(file) as { model_sha256: string }).model_sha256, hash);
  assert.equal((await twinMetadata())["model_sha256"], hash);
});

test("the tuned twin replaces routers, norms and attention, gains at its task and loads as a model of its own", async (t) => {
  const base = await decodeSafetensors(WEIGHTS);
  const twin = await decodeSafetensors(TWIN);
  for (const [name, { dtype, shape }] of twin) {
    assert.match(name, /^model\.layers\.\d+\.(?:mlp\.gate\.|self_attn\.|\w+_layernorm\.)/u);
    assert.deepEqual({ dtype, shape }, { dtype: "BF16", shape: base.get(name)?.shape }, name);
  }
  const { task, heldout_loss_before: before, heldout_loss_after: after } = await twinMetadata();
  const loss = (text: string) => (JSON.parse(text) as Record<string, number>)[task];
  assert.ok(loss(after) < loss(before), `${task}: ${before} before, ${after} after`);

  const dir = await temporaryDir(t);
  await cp(join(DEMO_MODEL, "config.json"), join(dir, "config.json"));
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(new Map([...base, ...twin])));
  const [plain, tuned] = [await openCheckpoint(DEMO_MODEL), await openCheckpoint(dir)];
  t.after(() => Promise.all([plain.close(), tuned.close()]));
  assert.notEqual(tuned.modelHash, plain.modelHash);
  // What pruning by the change of the routers' norms goes by: some experts' grow, others' shrink.
  for (let layer = 0; layer < plain.config.numLayers; layer++) {
    const name = `model.layers.${layer}.mlp.gate.weight`;
    const [was, is] = [base, twin].map((tensors) => routerNorms(tensors.get(name)!));
    const changes = is.map((norm, expert) => norm - was[expert]);
    assert.ok(Math.min(...changes) < 0 && Math.max(...changes) > 0, `layer ${layer}`);
  }
});
