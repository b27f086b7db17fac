/** Known logits and continuations of the two models that the tests run, computed elsewhere. */

import { readFile } from "node:fs/promises";
import path from "node:path";

import { SafetensorsFile } from "../../core/model/safetensors.ts";
import { f32FromBytes, numElements } from "../../core/tensor.ts";
import { DEMO_MODEL, TINY_MODEL } from "./cluster.ts";

const ROOT = path.join(import.meta.dirname, "../..");

/** A prompt of the tiny model. */
export interface TinyGolden {
  readonly prompt: readonly number[];
  /** Greedy continuation [24]. */
  readonly greedy: readonly number[];
  /** Logits of every position [numTokens, vocabSize]. */
  readonly logits: readonly Float32Array[];
}

/** The four prompts of the tiny model. */
export async function readTinyGoldens(): Promise<TinyGolden[]> {
  const directory = path.join(ROOT, TINY_MODEL);
  const golden = JSON.parse(await readFile(path.join(directory, "golden.json"), "utf8")) as {
    prompts: number[][];
    greedy: number[][];
  };
  const file = await SafetensorsFile.open(path.join(directory, "golden.safetensors"));
  try {
    const goldens: TinyGolden[] = [];
    for (const [i, prompt] of golden.prompts.entries()) {
      const name = `logits.${i}`;
      const { shape } = file.tensors.get(name) ?? { shape: [] };
      const [numTokens, vocabSize] = shape;
      const bytes = await file.readBytes(name, 0, numTokens * vocabSize * 4);
      const values = f32FromBytes(bytes);
      const logits = prompt.map((_, t) => values.subarray(t * vocabSize, (t + 1) * vocabSize));
      goldens.push({ prompt, greedy: golden.greedy[i], logits });
    }
    return goldens;
  } finally {
    await file.close();
  }
}

/** The tiny model's routing of a prompt, by layer: ids and weights [numTokens, topK], most likely first. */
export async function readTinyRouting(
  prompt: number,
): Promise<{ readonly ids: readonly number[]; readonly weights: Float32Array }[]> {
  const file = await SafetensorsFile.open(path.join(ROOT, TINY_MODEL, "golden.safetensors"));
  const readWhole = async (name: string) => {
    const { shape } = file.tensors.get(name) ?? { shape: [] };
    return file.readBytes(name, 0, numElements(shape) * 4);
  };
  try {
    const layers = [];
    for (let layer = 0; file.tensors.has(`route_idx.${prompt}.${layer}`); layer++) {
      const ids = new Int32Array(
        f32FromBytes(await readWhole(`route_idx.${prompt}.${layer}`)).slice().buffer,
      );
      layers.push({
        ids: [...ids],
        weights: f32FromBytes(await readWhole(`route_w.${prompt}.${layer}`)),
      });
    }
    return layers;
  } finally {
    await file.close();
  }
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

/** The demo model's goldens of these names, as in "wiki". */
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
