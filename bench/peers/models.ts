/** The models that peers are compared on, and what is made of them: goldens, prompts, GGUF files. */

import { createHash } from "node:crypto";
import { mkdir, readdir, rm } from "node:fs/promises";
import { basename, join, resolve } from "node:path";

import { openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { readJsonFile } from "../../core/model/checkpoint/json-file.ts";
import { readModelConfig } from "../../core/model/load-config.ts";
import { loadTokenizer } from "../../core/model/tokenizer/tokenizer.ts";
import { randomPrompts, readTexts, textPrompts } from "../load/dataset.ts";
import { seededRandom } from "../../core/random.ts";
import { readSyntheticConfig } from "../synthetic/command.ts";
import { withLayers, writeSynthetic } from "../synthetic/generate.ts";
import { writeQwen2MoeGguf } from "./gguf-writer.ts";
import type { Golden, Load } from "./loads.ts";

const MAX_GOLDEN_BYTES = 10_000_000;
/** Changes when what the writer makes of a checkpoint does, so that files of an earlier one are not used. */
const GGUF_VERSION = 1;
const SHARD_BYTES = 4_000_000_000;

/** Told how far a file is: bytes done, and of how many. */
export type OnBytes = (label: string, done: number, total: number) => void;

/** The directory of a synthetic checkpoint, written where it is not there yet. Throws as `writeSynthetic`. */
export async function syntheticModel(
  cache: string,
  config: string,
  layers: number | undefined,
  onBytes: OnBytes,
): Promise<string> {
  const { file, raw } = await readSyntheticConfig(config);
  const written = withLayers(raw, layers);
  const hash = createHash("sha256").update(JSON.stringify(written)).digest("hex").slice(0, 8);
  const name = `${basename(file, ".json")}-${String(written.num_hidden_layers)}-layers-${hash}`;
  const out = join(cache, "synthetic", name);
  // config.json is written last: without it the rest is of a run that was interrupted.
  if ((await readJsonFile(join(out, "config.json"), MAX_GOLDEN_BYTES)) === undefined) {
    await rm(out, { recursive: true, force: true });
    await writeSynthetic({
      raw: written,
      configFile: file,
      out,
      seed: 0,
      maxShardBytes: SHARD_BYTES,
      onBytes: (done, total) => onBytes(name, done, total),
    });
  }
  return out;
}

/** The model as a GGUF file, written where it is not there yet. Throws GgufError. */
export async function ggufOf(cache: string, model: string, onBytes: OnBytes): Promise<string> {
  const checkpoint = await openCheckpoint(model);
  try {
    const folder = join(cache, "gguf");
    await mkdir(folder, { recursive: true });
    const hash = checkpoint.modelHash.slice(0, 12);
    const name = `${basename(resolve(model))}-${hash}-v${GGUF_VERSION}.gguf`;
    if (!(await readdir(folder)).includes(name)) {
      await writeQwen2MoeGguf(checkpoint, join(folder, name), (done, total) =>
        onBytes(name, done, total),
      );
    }
    return join(folder, name);
  } finally {
    await checkpoint.close();
  }
}

/** Greedy continuations of MODEL/goldens/*.json whose prompt has at most `maxTokens`; empty where there are none. */
export async function readGoldens(model: string, maxTokens: number): Promise<Golden[]> {
  const folder = join(model, "goldens");
  const files = await readdir(folder).catch(() => []);
  const goldens: Golden[] = [];
  for (const file of files.filter((name) => name.endsWith(".json")).sort()) {
    const raw = (await readJsonFile(join(folder, file), MAX_GOLDEN_BYTES)) as {
      readonly token_ids?: readonly number[];
      readonly greedy?: { readonly ids: readonly number[] };
    };
    const { token_ids: prompt, greedy } = raw;
    if (prompt === undefined || greedy === undefined) continue;
    if (prompt.length + greedy.ids.length > maxTokens) continue;
    goldens.push({ name: basename(file, ".json"), prompt, greedy: greedy.ids });
  }
  return goldens;
}

/** Prompts of a load and round: slices of the model's own held-out texts, or random ids where it has none. */
export async function promptSource(
  model: string,
): Promise<(load: Load, round: number) => readonly (readonly number[])[]> {
  const { vocabSize } = await readModelConfig(model);
  const tokenizer = await loadTokenizer(model);
  const texts = tokenizer && (await readTexts(join(model, "eval")).catch(() => undefined));
  const encode = (text: string) => tokenizer!.encode(text, { addSpecialTokens: false });
  return ({ name, streams, promptLen }, round) => {
    // A seed per load and round: a prompt that comes again would be found in the prefix cache.
    const random = seededRandom(
      createHash("sha256").update(`${name} ${round}`).digest().readUInt32LE(),
    );
    return texts === undefined
      ? randomPrompts(streams, promptLen, vocabSize, random)
      : textPrompts(texts, streams, promptLen, random, encode);
  };
}
