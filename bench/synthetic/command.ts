/** Writes a checkpoint of random weights: `npm run bench -- synthetic`. */

import { readdir } from "node:fs/promises";
import { basename, join } from "node:path";

import { z } from "zod";

import { type JsonObject, readJsonFile } from "../../core/model/checkpoint/json-file.ts";
import { loadConfig } from "../../core/platform/config.ts";
import { createLogger } from "../../core/platform/log.ts";
import { createProgressView } from "../../core/platform/progress.ts";
import { writeSynthetic } from "./generate.ts";

const CONFIGS = join(import.meta.dirname, "configs");
const MAX_CONFIG_BYTES = 10_000_000;

/** Names of the configs that come with the bench. */
export async function shippedConfigs(): Promise<string[]> {
  const files = await readdir(CONFIGS);
  return files.map((file) => basename(file, ".json")).sort();
}

/** The config.json of that name or path, and its path. Throws where there is none. */
export async function readSyntheticConfig(
  config: string,
): Promise<{ readonly file: string; readonly raw: JsonObject }> {
  const shipped = await shippedConfigs();
  const file = shipped.includes(config) ? join(CONFIGS, `${config}.json`) : config;
  const raw = await readJsonFile(file, MAX_CONFIG_BYTES);
  if (raw === undefined) {
    throw new Error(`--config ${config}: no such file, and none of ${shipped.join(", ")}`);
  }
  return { file, raw };
}

/** Runs the program; returns the exit status. */
export async function runSyntheticCommand(argv: string[]): Promise<number> {
  const schema = z.object({
    config: z.string().meta({
      description: `config.json, or one of ${(await shippedConfigs()).join(", ")}`,
      placeholder: "FILE|NAME",
    }),
    layers: z.int().min(1).optional().meta({
      description: "Decoder layers",
      placeholder: "N",
      defaultText: "as many as the config has",
    }),
    out: z.string().meta({ description: "Directory to write, new or empty", placeholder: "DIR" }),
    seed: z.int().min(0).default(0).meta({ description: "Seed of the weights", placeholder: "N" }),
    shardBytes: z.int().min(1).default(4_000_000_000).meta({
      description: "Weights in one file at most",
      unit: "bytes",
      placeholder: "N",
    }),
  });
  const about = {
    command: "npm run bench -- synthetic",
    summary: "Writes a checkpoint of random BF16 weights in the published layout of a config.",
  };
  const { config, layers, out, seed, shardBytes } = loadConfig(schema, about, argv);
  const progress = createProgressView(createLogger("bench", "info"), "writing");
  const { file, raw } = await readSyntheticConfig(config);
  let numBytes: number;
  try {
    numBytes = await writeSynthetic({
      raw,
      configFile: file,
      layers,
      out,
      seed,
      maxShardBytes: shardBytes,
      onBytes: (done, total) => progress.update("synthetic weights", done, total),
    });
  } finally {
    progress.close();
  }
  console.log(`${out}: ${(numBytes / 1e9).toFixed(2)} GB of weights`);
  return 0;
}
