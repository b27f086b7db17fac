/** `switchyard inspect`: what a model is, and what it will take per process, before anything is loaded. */

import { readdir } from "node:fs/promises";
import { basename, resolve } from "node:path";

import { z } from "zod";

import { commonFormat, expertsSetting, formatsOf } from "../core/expert-formats.ts";
import { openWeights } from "../core/model/checkpoint/checkpoint.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { readModelConfig } from "../core/model/load-config.ts";
import { readOverlay } from "../core/model/overlay.ts";
import { storedExperts } from "../core/model/checkpoint/stored-experts.ts";
import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { openShardDevice } from "../expert-service/device.ts";
import { routerFields } from "../router-service/config.ts";
import { runnerLimits } from "../router-service/engine/runner-limits.ts";
import { type InspectInput, planInspection } from "./inspect-plan.ts";
import { formatInspection, inspectionJson, type InspectSubject } from "./inspect-report.ts";
import { jsonText, printAnswer } from "./print-answer.ts";

const GIB = 2 ** 30;
const MIB = 2 ** 20;

const schema = z.object({
  model: serviceOptions.model.meta({ ...serviceOptions.model.meta(), positional: true }),
  shards: z.int().min(0).max(1024).default(0).meta({
    description: "Expert shards; 0: one process that holds all experts itself",
    placeholder: "N",
  }),
  expertsBits: serviceOptions.expertsBits,
  expertsGroup: serviceOptions.expertsGroup,
  memory: z.number().positive().max(1e6).optional().meta({
    description: "Memory that each process has",
    unit: "GiB",
    placeholder: "GIB",
    defaultText: "what the adapter here declares",
  }),
  maxBinding: z.number().positive().max(1e9).optional().meta({
    description: "Largest buffer that a kernel of each process can bind",
    unit: "MiB",
    placeholder: "MIB",
    defaultText: "what the adapter here takes; no bound on the CPU",
  }),
  weights: z.enum(["f16", "f32"]).default("f16").meta({
    description: "Dtype of weights in device memory",
  }),
  ...routerFields.pick({
    maxNumSeqs: true,
    maxNumBatchedTokens: true,
    maxModelLen: true,
    kvBlocks: true,
    adapter: true,
    device: true,
  }).shape,
  json: z.boolean().default(false).meta({ description: "JSON instead of text, sizes in bytes" }),
});

type InspectConfig = Readonly<z.output<typeof schema>>;

const about = {
  command: "switchyard inspect",
  summary:
    "Shows what a model is and what it takes per process: weights by part, KV cache, whether it fits.",
  notes:
    "switchyard inspect DIR is switchyard inspect --model DIR; flags stand before or after it. Only config.json and the\n" +
    "headers of the weight files are read; without weight files the config alone tells.",
};

/** Runs the command; answers its exit code: 0, 1 where the model can not be read, 2 for bad flags. */
export async function runInspectCommand(argv: readonly string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  return printAnswer(about.command, async () => {
    const subject = await inspect(settings);
    return settings.json ? jsonText(inspectionJson(subject)) : formatInspection(subject);
  });
}

interface WeightFiles extends NonNullable<InspectSubject["files"]> {
  readonly names: ReadonlySet<string>;
}

async function inspect(settings: InspectConfig): Promise<InspectSubject> {
  const config = await readModelConfig(settings.model);
  const files = await weightFiles(settings.model);
  const machine = await machineOf(settings, config);
  const { memoryBytes, bindingBytes, isLimit, holdsTwice } = machine;
  const limits = runnerLimits(settings, config, bindingBytes);
  const { weights, shards } = settings;
  // Without weight files the config's word is taken.
  const stored = storedExperts(config, (name) => files === undefined || files.names.has(name));
  const experts = commonFormat(expertsSetting(settings), weights, stored);
  const overlay = await readOverlay(settings.model, config);
  const formatOf = formatsOf(overlay, experts);
  return {
    name: basename(resolve(settings.model)),
    config,
    files,
    weights,
    experts,
    overlaid: overlay !== undefined,
    limits,
    ...machine,
    plan: planInspection({
      config,
      weights,
      formatOf,
      limits,
      shards,
      memoryBytes,
      bindingBytes,
      isLimit,
      holdsTwice,
    }),
  };
}

/** Bytes of the weight files by dtype, and the tensors' names, from their headers. */
async function weightFiles(dir: string): Promise<WeightFiles | undefined> {
  if (!(await hasWeights(dir))) return undefined;
  const { files, fileOf } = await openWeights(dir);
  const bytes = new Map<string, number>();
  for (const file of files) {
    for (const { dtype, begin, end } of file.tensors.values()) {
      bytes.set(dtype, (bytes.get(dtype) ?? 0) + end - begin);
    }
    await file.close();
  }
  return { count: files.length, bytes, names: new Set(fileOf.keys()) };
}

async function hasWeights(dir: string): Promise<boolean> {
  const names = await readdir(dir);
  return names.some((name) => /^model\.safetensors(\.index\.json)?$/u.test(name));
}

type Machine = Pick<InspectSubject, "memoryBytes" | "memoryFrom" | "bindingBytes"> &
  Pick<InspectInput, "isLimit" | "holdsTwice">;

/** A process's machine: the settings, and where they are silent what a shard on this machine's adapter would offer. */
async function machineOf(
  { memory, maxBinding, device, adapter }: InspectConfig,
  config: ModelConfig,
): Promise<Machine> {
  const logger = createLogger("inspect", "silent");
  const memoryLimit = memory === undefined ? undefined : memory * GIB;
  const opened = await openShardDevice({ device, adapter, memoryLimit }, config, logger);
  try {
    return {
      memoryBytes: opened.memoryBytes,
      memoryFrom: memory === undefined ? `declared by ${opened.adapter}` : "--memory",
      bindingBytes: maxBinding === undefined ? opened.bindingBytes : maxBinding * MIB,
      isLimit: memory !== undefined,
      holdsTwice: opened.holdsTwice,
    };
  } finally {
    opened.close();
  }
}
