/** A checkpoint of random weights in the published layout of its family, from any config.json and of any depth. */

import { mkdir, readdir, statfs, writeFile } from "node:fs/promises";
import { join } from "node:path";

import { expectedTensors } from "../../core/model/families/families.ts";
import type { JsonObject } from "../../core/model/checkpoint/json-file.ts";
import { parseModelConfig } from "../../core/model/load-config.ts";
import { numElements } from "../../core/tensor.ts";
import { randomBf16 } from "./random-values.ts";
import { shardTensors, writeSafetensors, type WrittenTensor } from "./safetensors-writer.ts";

/** What to write. */
export interface SyntheticOptions {
  /** A config.json, parsed; `configFile` is its name in error messages. */
  readonly raw: JsonObject;
  readonly configFile: string;
  /** Decoder layers; absent: as many as the config has. */
  readonly layers?: number;
  /** A directory that is not there yet, or empty. */
  readonly out: string;
  readonly seed: number;
  /** Bytes of data in one file at most, where no single tensor is larger. */
  readonly maxShardBytes: number;
  readonly onBytes?: (done: number, total: number) => void;
}

/** The checkpoint can not be written there. */
export class SyntheticError extends Error {
  override readonly name = "SyntheticError";
}

/**
 * Writes config.json and BF16 tensors, config.json last: a directory that has one is complete. Returns bytes of weights.
 * The same config, layers and seed give the same bytes; a layer's weights do not depend on how many there are.
 * Throws SyntheticError, or ModelConfigError where no family runs the config.
 */
export async function writeSynthetic(options: SyntheticOptions): Promise<number> {
  const { out, seed, onBytes } = options;
  const raw = withLayers(options.raw, options.layers);
  const config = parseModelConfig(raw, options.configFile);
  const tensors = Array.from(expectedTensors(config), ([name, { shape }]): WrittenTensor => ({
    name,
    dtype: "BF16",
    shape,
    numBytes: 2 * numElements(shape),
    chunks: () => randomBf16(name, shape, seed),
  }));
  const totalBytes = tensors.reduce((sum, { numBytes }) => sum + numBytes, 0);
  await prepareDirectory(out, totalBytes);
  let done = 0;
  await writeSafetensors(out, shardTensors(tensors, options.maxShardBytes), (numBytes) =>
    onBytes?.((done += numBytes), totalBytes),
  );
  await writeFile(join(out, "config.json"), `${JSON.stringify(raw, null, 2)}\n`);
  return totalBytes;
}

/**
 * The config with another number of layers: lists that have an entry per layer are cut or repeated, lists of layer
 * indices lose those beyond. Weights are BF16, so that a quantization of the published ones goes.
 */
export function withLayers(raw: JsonObject, layers: number | undefined): JsonObject {
  const published = raw.num_hidden_layers;
  const numLayers = layers ?? published;
  if (typeof numLayers !== "number") return raw; // the family says what is wrong with it
  const entries = Object.entries(raw).filter(([key]) => key !== "quantization_config");
  return Object.fromEntries(
    entries.map(([key, value]) => {
      if (key === "num_hidden_layers") return [key, numLayers];
      if (!Array.isArray(value)) return [key, value];
      const list: readonly unknown[] = value;
      if (key === "mlp_only_layers") {
        return [key, list.filter((layer) => (layer as number) < numLayers)];
      }
      if (list.length !== published) return [key, value];
      return [key, Array.from({ length: numLayers }, (_, layer) => list[layer % list.length])];
    }),
  );
}

/** Makes the directory. Throws where something is in it, or its disk has no room. */
async function prepareDirectory(out: string, numBytes: number): Promise<void> {
  await mkdir(out, { recursive: true });
  const [first] = await readdir(out);
  if (first !== undefined) {
    throw new SyntheticError(`${out} is not empty (${first}); choose another directory`);
  }
  const { bavail, bsize } = await statfs(out);
  const free = bavail * bsize;
  if (numBytes > free) {
    const gigabytes = (bytes: number) => `${(bytes / 1e9).toFixed(1)} GB`;
    throw new SyntheticError(`${out}: weights of ${gigabytes(numBytes)}, ${gigabytes(free)} free`);
  }
}
