/** Known logits, routing and continuations of the models that the tests run, computed elsewhere. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { SafetensorsFile } from "../../core/model/checkpoint/safetensors.ts";
import { f32FromBytes } from "../../core/tensor.ts";
import { DEMO_MODEL, TINY_MODEL } from "../../bench/rig/cluster.ts";

const ROOT = path.join(import.meta.dirname, "../..");

/** Directories of the tiny checkpoints of all families, with random weights. */
export const FAMILY_GOLDENS: readonly string[] = [
  "deepseek",
  "deepseek_v2",
  "deepseek_v2_yarn",
  "deepseek_v3",
  "gpt_oss",
  "granitemoe",
  "mixtral",
  "olmoe",
  "qwen2_moe",
  "qwen3_moe",
].map((name) => `test/goldens/${name}`);

/** Directories of tiny checkpoints with options that are published and that no family's golden has. */
export const VARIANT_GOLDENS: readonly string[] = [
  "deepseek_v2_group",
  "deepseek_v3_fp8",
  "gpt_oss_bf16",
  "granitemoe_untied",
  "mixtral_window",
  "olmoe_clip",
  "qwen2_moe_mixed",
  "qwen3_moe_fused",
  "qwen3_moe_sharded",
].map((name) => `test/goldens/variants/${name}`);

/** A prompt of a tiny checkpoint. */
export interface Golden {
  readonly prompt: readonly number[];
  /** Greedy continuation [24]. */
  readonly greedy: readonly number[];
  /** Logits of every position [numTokens, vocabSize]. */
  readonly logits: readonly Float32Array[];
  /** By MoE layer. */
  readonly routing: ReadonlyMap<number, GoldenRouting>;
}

/** One layer's routing of a prompt: ids and weights [numTokens, topK], by weight descending. */
export interface GoldenRouting {
  readonly ids: readonly number[];
  readonly weights: Float32Array;
}

/** The prompts of the tiny checkpoint in a directory, a path from the repository's root. */
export async function readGoldens(directory: string): Promise<Golden[]> {
  const dir = path.join(ROOT, directory);
  const { prompts, greedy } = JSON.parse(await readFile(path.join(dir, "golden.json"), "utf8")) as {
    prompts: number[][];
    greedy: number[][];
  };
  const file = await SafetensorsFile.open(path.join(dir, "golden.safetensors"));
  const read = (name: string) => {
    const { begin, end } = file.tensors.get(name) ?? { begin: 0, end: 0 };
    return file.readBytes(name, 0, end - begin);
  };
  const readRouting = async (prompt: number) => {
    const routing = new Map<number, GoldenRouting>();
    for (const name of [...file.tensors.keys()].sort()) {
      const [what, of, layer] = name.split(".");
      if (what !== "route_idx" || of !== `${prompt}`) continue;
      routing.set(Number(layer), {
        ids: [...new Int32Array((await read(name)).slice().buffer)],
        weights: f32FromBytes(await read(`route_w.${prompt}.${layer}`)),
      });
    }
    return routing;
  };
  try {
    const goldens: Golden[] = [];
    for (const [i, prompt] of prompts.entries()) {
      const values = f32FromBytes(await read(`logits.${i}`));
      const vocabSize = values.length / prompt.length;
      const logits = prompt.map((_, t) => values.subarray(t * vocabSize, (t + 1) * vocabSize));
      goldens.push({ prompt, greedy: greedy[i], logits, routing: await readRouting(i) });
    }
    return goldens;
  } finally {
    await file.close();
  }
}

/** The four prompts of the tiny model. */
export function readTinyGoldens(): Promise<Golden[]> {
  return readGoldens(TINY_MODEL);
}

/** The tiny model's routing of a prompt, by layer. */
export async function readTinyRouting(prompt: number): Promise<GoldenRouting[]> {
  return [...(await readTinyGoldens())[prompt].routing.values()];
}

/** A prompt of the demo model; chat and text prompts are given by their ids. */
export interface DemoGolden {
  readonly name: string;
  readonly token_ids: readonly number[];
  /** Logits of the last position [vocabSize]. */
  readonly last_logits: readonly number[];
  /** Ids and logits of the 20 most likely tokens of some other positions, most likely first. */
  readonly others: readonly {
    readonly position: number;
    readonly top20: readonly (readonly [number, number])[];
  }[];
  readonly greedy: { readonly ids: readonly number[]; readonly text: string };
}

/** The demo model's goldens of these names, as in "facts". */
export function readDemoGoldens(names: readonly string[]): Promise<DemoGolden[]> {
  return Promise.all(
    names.map(async (name) => {
      const file = path.join(ROOT, DEMO_MODEL, "goldens", `${name}.json`);
      return JSON.parse(await readFile(file, "utf8")) as DemoGolden;
    }),
  );
}

/** Natural logarithms of the softmax of the logits. */
export function logSoftmax(logits: ArrayLike<number>): Float64Array {
  const values = Float64Array.from(logits);
  const largest = values.reduce((a, b) => Math.max(a, b), -Infinity);
  const sum = values.reduce((total, value) => total + Math.exp(value - largest), 0);
  return values.map((value) => value - largest - Math.log(sum));
}
