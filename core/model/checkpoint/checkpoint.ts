/** A model directory opened for reading: its config, and its tensors by name, read from the files one by one. */

import { stat } from "node:fs/promises";
import { basename, isAbsolute, join, relative, resolve } from "node:path";

import type { ExpertFormat } from "../../expert-format.ts";
import { plainFloats } from "../../packing/mxfp4-matrix.ts";
import type { HostTensor, StoredMatrix } from "../../tensor.ts";
import { CheckpointError } from "./checkpoint-error.ts";
import type { GenerationConfig, ModelConfig } from "../config.ts";
import { expectedSources, familyOf } from "../families/families.ts";
import { isJsonObject, readJsonFile, shownJson } from "./json-file.ts";
import { parseModelConfig, readGenerationConfig, readRawConfig } from "../load-config.ts";
import type { TensorSource } from "../families/model-family.ts";
import { hashModel, type HashedTensor } from "./model-hash.ts";
import { type ModelOverlay, readOverlay } from "../overlay.ts";
import { SafetensorsFile } from "./safetensors.ts";
import { storedExperts } from "./stored-experts.ts";
import { refuseUnusedParts } from "./unexpected-tensors.ts";
import { findSource, type FindTensor, type ReadBytes, readStored } from "./stored-source.ts";

const SINGLE_FILE = "model.safetensors";
const INDEX_FILE = "model.safetensors.index.json";
const MAX_INDEX_BYTES = 100_000_000;
/** Weight files that are kept open. */
const MAX_FILES = 512;

/** An open checkpoint. Reads may run at the same time. */
export interface Checkpoint {
  readonly dir: string;
  readonly config: ModelConfig;
  readonly generation: GenerationConfig;
  /** What the directory's `switchyard.json` says; absent where there is none. */
  readonly overlay?: ModelOverlay;
  /** The format of experts that all routed experts have in the files already; undefined where they are floats. */
  readonly storedExperts: ExpertFormat | undefined;
  /** Identity of the checkpoint: SHA-256, hex, of its config and overlay, its tensor table and samples of its data. */
  readonly modelHash: string;
  /** Names of all tensors of the files, sorted. */
  readonly tensorNames: readonly string[];
  /** Names of tensors that the config does not ask for, sorted; nothing of the engine reads or needs them. Layers that only help to draft are not among them. */
  readonly unexpectedTensors: readonly string[];
  /**
   * Reads one matrix or vector: its own bytes alone, of a tensor that holds several. FP8 becomes F32, MXFP4 BF16.
   * Throws CheckpointError where the files do not have it as the source says, SafetensorsError where a file has shrunk.
   */
  read(source: TensorSource): Promise<HostTensor>;
  /** As `read`, of several sources; those within the same bytes read them once. */
  readTogether(sources: readonly TensorSource[]): Promise<HostTensor[]>;
  /** As `readTogether`, but MXFP4 stays as it is. */
  readMatrices(sources: readonly TensorSource[]): Promise<StoredMatrix[]>;
  /** Bytes read from the weight files so far, headers and the hash's samples included. */
  bytesRead(): number;
  /** Closes the files; reads fail from then on. */
  close(): Promise<void>;
}

/**
 * Opens the checkpoint of a model directory: `config.json` with `model.safetensors`, or with
 * `model.safetensors.index.json` and its files. Every tensor that the config asks for is there, with its shape, in F32,
 * F16, BF16, or FP8 or MXFP4 with its scales, in the published layout or that of transformers 5, and none is of a part that the config leaves out. Throws ModelConfigError, JsonFileError, SafetensorsError or CheckpointError.
 */
export async function openCheckpoint(dir: string): Promise<Checkpoint> {
  const rawConfig = await readRawConfig(dir);
  const config = parseModelConfig(rawConfig, join(dir, "config.json"));
  const generation = await readGenerationConfig(dir, config);
  const overlay = await readOverlay(dir, config);
  const { files, fileOf } = await openWeights(dir);
  const close = async () => {
    await Promise.all(files.map((file) => file.close()));
  };
  try {
    const find: FindTensor = (name) => {
      const file = fileOf.get(name);
      const entry = file?.tensors.get(name);
      return file && entry && { name, file, entry };
    };
    const names = usedTensors(config, find, dir);
    const family = familyOf(config);
    const readMatrices = (sources: readonly TensorSource[]) => {
      const bytesRead: ReadBytes = new Map();
      return Promise.all(
        sources.map(async (source) => readStored(findSource(source, find, dir), bytesRead)),
      );
    };
    const readTogether = async (sources: readonly TensorSource[]) =>
      (await readMatrices(sources)).map(plainFloats);
    const tensorNames = [...fileOf.keys()].sort();
    const unexpectedTensors = tensorNames.filter(
      (name) => !names.has(name) && family.isExtra?.(config, name) !== true,
    );
    refuseUnusedParts(dir, config, unexpectedTensors);
    const hashed = tensorNames.map((name): HashedTensor => {
      const file = fileOf.get(name)!;
      const { dtype, shape, begin, end } = file.tensors.get(name)!;
      const read = (offset: number, length: number) => file.readBytes(name, offset, length);
      return { name, dtype, shape, numBytes: end - begin, read };
    });
    return {
      dir,
      config,
      generation,
      overlay,
      storedExperts: storedExperts(config, (name) => fileOf.has(name)),
      modelHash: await hashModel(rawConfig, hashed, overlay?.raw),
      tensorNames,
      unexpectedTensors,
      read: async (source) => (await readTogether([source]))[0],
      readTogether,
      readMatrices,
      bytesRead: () => files.reduce((sum, file) => sum + file.bytesRead(), 0),
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Names of the tensors that the model reads. Throws CheckpointError for the first that is missing or not as the config has it. */
function usedTensors(config: ModelConfig, find: FindTensor, dir: string): Set<string> {
  const names = new Set<string>();
  for (const source of expectedSources(config)) {
    const stored = findSource(source, find, dir);
    names.add(stored.values.name);
    if (stored.encoding !== "plain") names.add(stored.scales.name);
  }
  return names;
}

/** Weight files of a model directory, open. */
export interface WeightFiles {
  readonly files: readonly SafetensorsFile[];
  /** The file that holds each tensor. */
  readonly fileOf: ReadonlyMap<string, SafetensorsFile>;
}

/**
 * Opens the weight files of a model directory and reads their headers; the caller closes them.
 * Throws JsonFileError, SafetensorsError or CheckpointError.
 */
export async function openWeights(dir: string): Promise<WeightFiles> {
  const single = await openIfThere(join(dir, SINGLE_FILE));
  if (single) {
    return {
      files: [single],
      fileOf: new Map(Array.from(single.tensors.keys(), (name) => [name, single])),
    };
  }
  const indexFile = join(dir, INDEX_FILE);
  const index = await readJsonFile(indexFile, MAX_INDEX_BYTES);
  if (!index) {
    throw new CheckpointError(`${dir}: neither ${SINGLE_FILE} nor ${INDEX_FILE} is there`);
  }
  return openIndexed(dir, indexFile, parseWeightMap(dir, indexFile, index.weight_map));
}

async function openIfThere(file: string): Promise<SafetensorsFile | undefined> {
  const found = await stat(file).catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  return found === undefined ? undefined : SafetensorsFile.open(file);
}

/** Tensor name → file name within `dir`. Throws CheckpointError naming the entry. */
function parseWeightMap(dir: string, indexFile: string, value: unknown): Map<string, string> {
  if (!isJsonObject(value)) {
    throw new CheckpointError(`${indexFile}: weight_map is not an object of file names`);
  }
  const weightMap = new Map<string, string>();
  for (const [name, file] of Object.entries(value)) {
    const shown = `${indexFile}: weight_map[${JSON.stringify(name)}] is ${shownJson(file)}`;
    if (typeof file !== "string" || basename(file) === "" || file.includes("\0")) {
      throw new CheckpointError(`${shown}, expected a file name`);
    }
    const inside = relative(resolve(dir), resolve(dir, file));
    if (isAbsolute(file) || inside === "" || inside === ".." || /^\.\.[/\\]/u.test(inside)) {
      throw new CheckpointError(`${shown}, expected a file within the model directory`);
    }
    weightMap.set(name, inside);
  }
  return weightMap;
}

async function openIndexed(
  dir: string,
  indexFile: string,
  weightMap: ReadonlyMap<string, string>,
): Promise<WeightFiles> {
  const fileNames = [...new Set(weightMap.values())].sort();
  if (fileNames.length > MAX_FILES) {
    throw new CheckpointError(`${indexFile}: ${fileNames.length} files, at most ${MAX_FILES}`);
  }
  const files = new Map<string, SafetensorsFile>();
  try {
    for (const fileName of fileNames) {
      const file = await openIfThere(join(dir, fileName));
      if (!file) throw new CheckpointError(`${indexFile}: ${fileName} is not there`);
      files.set(fileName, file);
    }
    const fileOf = new Map<string, SafetensorsFile>();
    for (const [name, fileName] of weightMap) {
      const file = files.get(fileName)!;
      if (!file.tensors.has(name)) {
        throw new CheckpointError(
          `${file.file}: tensor ${name} is missing, expected by ${INDEX_FILE}`,
        );
      }
      fileOf.set(name, file);
    }
    return { files: [...files.values()], fileOf };
  } catch (error) {
    await Promise.all(Array.from(files.values(), (file) => file.close()));
    throw error;
  }
}
