/** Checkpoints in other layouts than the goldens'. */

import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { TestContext } from "node:test";

import { type Checkpoint, openCheckpoint } from "../../../../core/model/checkpoint/checkpoint.ts";
import { plainFloats } from "../../../../core/packing/mxfp4-matrix.ts";
import { mapTensors } from "../../../../bench/rig/expert-reference.ts";
import {
  readExpert,
  readLayer,
  readModelWeights,
} from "../../../../core/model/checkpoint/weights.ts";
import {
  copyModel,
  decodeSafetensors,
  encodeSafetensors,
  type TestTensor,
} from "./safetensors-writer.ts";

/** Directory of a golden. */
export const goldenDir = (name: string) => join(import.meta.dirname, "../../../goldens", name);

/** Opens a checkpoint until the test is over. */
export async function openForTest(t: TestContext, dir: string): Promise<Checkpoint> {
  const checkpoint = await openCheckpoint(dir);
  t.after(() => checkpoint.close());
  return checkpoint;
}

/** A copy of a golden with other tensors, and with parts of its config replaced. */
export async function goldenWith(
  t: TestContext,
  name: string,
  change: (tensors: Map<string, TestTensor>) => Map<string, TestTensor>,
  config: Record<string, unknown> = {},
): Promise<string> {
  const dir = await copyModel(t, goldenDir(name), config);
  const tensors = await decodeSafetensors(join(goldenDir(name), "model.safetensors"));
  await writeFile(join(dir, "model.safetensors"), encodeSafetensors(change(tensors)));
  return dir;
}

/** All weights of a model in plain floats, one after the other. */
export async function allWeights(checkpoint: Checkpoint): Promise<unknown[]> {
  const { config } = checkpoint;
  const weights: unknown[] = [await readModelWeights(checkpoint)];
  for (const [layer, kind] of config.layers.entries()) {
    weights.push(await readLayer(checkpoint, layer));
    for (let expert = 0; expert < (kind === "moe" ? config.numExperts : 0); expert++) {
      const read = await readExpert(checkpoint, layer, expert);
      weights.push({ ...read, ...mapTensors(read, plainFloats) });
    }
  }
  return weights;
}

/** Experts' tensors [rows, columns] as transformers 5 holds them: one per layer, gate above up. */
export function fuse(
  tensors: ReadonlyMap<string, TestTensor>,
  [gate, up, down]: readonly [string, string, string],
): Map<string, TestTensor> {
  const fused = new Map<string, TestTensor>();
  const stack = (name: string, parts: readonly string[]) => {
    const known = fused.get(name) ?? { dtype: "", shape: [0], data: new Uint8Array() };
    const { dtype, shape } = tensors.get(parts[0])!;
    const data = [known.data, ...parts.map((part) => tensors.get(part)!.data)];
    const rows = parts.length * shape[0];
    const stacked = [known.shape[0] + 1, rows, shape[1]];
    fused.set(name, { dtype, shape: stacked, data: Buffer.concat(data) });
  };
  const byExpert = /^(.*)\.(mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)\.(weight\w*)$/u;
  const order = (name: string) => Number(byExpert.exec(name)?.[3] ?? -1);
  for (const name of [...tensors.keys()].sort((a, b) => order(a) - order(b))) {
    const [, layer, block, expert, projection, kind] = byExpert.exec(name) ?? [];
    const part = (own: string) => `${layer}.${block}.experts.${expert}.${own}.${kind}`;
    const suffix = kind?.replace("weight", "") ?? "";
    if (projection === gate) stack(`${layer}.mlp.experts.gate_up_proj${suffix}`, [name, part(up)]);
    else if (projection === down) stack(`${layer}.mlp.experts.down_proj${suffix}`, [name]);
    else if (projection === undefined) {
      fused.set(name.replace(".block_sparse_moe.", ".mlp."), tensors.get(name)!);
    }
  }
  return fused;
}

export const PROJECTIONS = ["gate_proj", "up_proj", "down_proj"] as const;
