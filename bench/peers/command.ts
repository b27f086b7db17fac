/** Switchyard beside its peers on the same device, in turns: `npm run bench:peers`. */

import { join } from "node:path";

import { z } from "zod";

import { openDevice } from "../../core/gpu/open-device.ts";
import type { Gpu } from "../../core/gpu/device.ts";
import { loadConfig } from "../../core/platform/config.ts";
import { createLogger } from "../../core/platform/log.ts";
import { createProgressView, type ProgressView } from "../../core/platform/progress.ts";
import { serviceOptions } from "../../core/platform/service-options.ts";
import type { Entrant } from "./contender.ts";
import { openLlamaCpp } from "./llama-cpp.ts";
import { loadsOf, type LoadSizes, ONE_STREAM, prefillName, togetherName } from "./loads.ts";
import { ggufOf, promptSource, readGoldens, syntheticModel } from "./models.ts";
import { type Aim, aimsTable, ratesTable } from "./report.ts";
import { type Outcome, runRounds } from "./rounds.ts";
import { openSwitchyard } from "../engine.ts";
import { openTransformers } from "./transformers.ts";

const PEERS = ["llama.cpp-vulkan", "llama.cpp-cpu", "transformers"] as const;
const PARTS = ["demo", "synthetic"] as const;

const OURS = "Switchyard";
const DEFAULT_CACHE = join(import.meta.dirname, "../../.cache/peers");

const count = z.int().min(1);

const schema = z.object({
  parts: z
    .array(z.enum(PARTS))
    .default([...PARTS])
    .meta({
      description: "Models: the one of --model, the one of --synthetic",
      placeholder: PARTS.join(","),
      expectation: `some of ${PARTS.join(", ")}`,
    }),
  peers: z
    .array(z.enum(PEERS))
    .default([...PEERS])
    .meta({
      description: "Who is compared with",
      placeholder: PEERS.join(","),
      expectation: `some of ${PEERS.join(", ")}`,
    }),
  model: serviceOptions.model,
  synthetic: z.string().default("qwen1.5-moe-a2.7b").meta({
    description:
      "Config of the synthetic checkpoint: config.json, or a name of bench/synthetic/configs",
    placeholder: "FILE|NAME",
  }),
  layers: count.optional().meta({
    description: "Decoder layers of the synthetic checkpoint",
    placeholder: "N",
    defaultText: "1 on a software adapter, else as many as the config has",
  }),
  rounds: count.default(3).meta({ description: "Turns of each contender", placeholder: "N" }),
  promptLen: count.default(128).meta({ description: "Tokens of a prompt", placeholder: "N" }),
  outputLen: z.int().min(2).optional().meta({
    description: "Tokens of a stream",
    placeholder: "N",
    defaultText: "128, of the synthetic checkpoint on a software adapter 16",
  }),
  streams: count.default(16).meta({ description: "Streams together", placeholder: "N" }),
  prefills: z.array(z.coerce.number().int().min(1)).optional().meta({
    description: "Lengths of the prompts whose prefill is measured",
    placeholder: "N,N",
    defaultText: "128,512, of the synthetic checkpoint on a software adapter 128",
  }),
  device: serviceOptions.device,
  adapter: serviceOptions.adapter,
  weights: serviceOptions.weights,
  maxNumBatchedTokens: count.default(512).meta({
    description: "Tokens of one step of Switchyard at most; the default is llama.cpp's",
    placeholder: "N",
  }),
  llamaBatch: count.optional().meta({
    description: "Tokens of one batch of llama.cpp at most",
    placeholder: "N",
    defaultText:
      "512; by Vulkan on a software adapter 64, as larger ones gave no answer there within minutes",
  }),
  flashAttention: z.boolean().default(false).meta({
    description: "llama.cpp with flash attention, which its package leaves off",
  }),
  transformersDtype: z.enum(["auto", "float32", "bfloat16", "float16"]).default("auto").meta({
    description: "Dtype of transformers; auto: float32 on the CPU, bfloat16 on CUDA",
  }),
  python: z.string().default("python3").meta({
    description: "Python that makes the environment of transformers",
    placeholder: "COMMAND",
  }),
  torchIndex: z.string().optional().meta({
    description:
      "Package index of torch, such as the one of its CPU-only builds; pip's own serves CUDA builds of several GB, which run on the CPU as well",
    placeholder: "URL",
    defaultText: "pip's own",
  }),
  oneAtATime: z.boolean().default(false).meta({
    description: "Close a contender before the next one's turn: for models that fit only once",
  }),
  cache: z.string().default(DEFAULT_CACHE).meta({
    description: "Folder of what is installed and written for the comparison",
    placeholder: "DIR",
    defaultText: ".cache/peers",
  }),
  timeout: z.number().positive().default(900).meta({
    description: "Deadline of one load or answer of a contender",
    unit: "s",
    placeholder: "SECONDS",
  }),
});

type Settings = Readonly<z.output<typeof schema>>;

const about = {
  command: "npm run bench:peers --",
  summary:
    "Runs Switchyard, llama.cpp and transformers in turns on the same device and prints rates and ratios as Markdown.",
  notes:
    "llama.cpp is the npm package node-llama-cpp, transformers come from PyPI into a Python environment; both are\ninstalled on the first run, into --cache. A peer that can not be had is named and left out.",
};

/** Runs the program; returns the exit status: 0, or 1 where Switchyard or every peer failed. */
export async function runPeersCommand(argv: string[]): Promise<number> {
  const settings = loadConfig(schema, about, argv);
  const logger = createLogger("bench", "info");
  const progress = createProgressView(logger);
  let gpu: Gpu | undefined;
  let measured = 0;
  try {
    gpu = await openDevice(settings.device, settings.adapter, logger);
    const isSoftware = gpu === undefined || gpu.offers.software;
    for (const part of settings.parts) {
      const outcomes = await comparePart(part, settings, gpu, isSoftware, progress);
      measured += outcomes.filter(({ problem }) => problem === undefined).length - 1;
    }
  } finally {
    progress.close();
    gpu?.close();
  }
  return measured > 0 ? 0 : 1;
}

async function comparePart(
  part: (typeof PARTS)[number],
  settings: Settings,
  gpu: Gpu | undefined,
  isSoftware: boolean,
  progress: ProgressView,
): Promise<readonly Outcome[]> {
  const { cache, rounds } = settings;
  const onBytes = (label: string, done: number, total: number) =>
    progress.update(label, done, total);
  const isSmall = part === "synthetic" && isSoftware;
  const layers = settings.layers ?? (isSoftware ? 1 : undefined);
  const model =
    part === "demo"
      ? settings.model
      : await syntheticModel(cache, settings.synthetic, layers, onBytes);
  const sizes: LoadSizes = {
    promptLen: settings.promptLen,
    outputLen: settings.outputLen ?? (isSmall ? 16 : 128),
    streams: settings.streams,
    prefills: settings.prefills ?? (isSmall ? [128] : [128, 512]),
  };
  const maxStreamTokens = Math.max(
    sizes.promptLen + sizes.outputLen,
    ...sizes.prefills.map((n) => n + 1),
  );
  const loads = loadsOf(sizes);
  const result = await runRounds({
    entrants: entrantsOf(settings, gpu, isSoftware, model, maxStreamTokens, onBytes),
    loads,
    rounds,
    goldens: await readGoldens(model, maxStreamTokens),
    prompts: await promptSource(model),
    oneAtATime: settings.oneAtATime,
    onTurn: (what) => progress.print(what),
  });
  console.log(
    `## ${model.split("/").at(-1)}: prompts of ${sizes.promptLen}, ${sizes.outputLen} out\n`,
  );
  console.log(result.outcomes.map(outcomeLine).join("\n"));
  console.log(
    `\nMedians of ${rounds} rounds in turns (lowest–highest); ratios are ${OURS} over the peer, medians of each round's.\n`,
  );
  console.log(`${ratesTable(result.rates)}\n`);
  const aims = aimsOf(part, sizes, isSoftware);
  if (aims.length > 0) console.log(`${aimsTable(result.rates, aims)}\n`);
  return result.outcomes;
}

function entrantsOf(
  settings: Settings,
  gpu: Gpu | undefined,
  isSoftware: boolean,
  model: string,
  maxStreamTokens: number,
  onBytes: (label: string, done: number, total: number) => void,
): Entrant[] {
  const { cache, streams: maxStreams, flashAttention, peers } = settings;
  const timeoutMs = settings.timeout * 1000;
  const limits = { maxStreams, maxStreamTokens, timeoutMs };
  const { weights, maxNumBatchedTokens: maxBatchedTokens } = settings;
  const ours: Entrant = {
    name: OURS,
    repeats: 1,
    open: () => openSwitchyard({ ...limits, model, gpu, weights, maxBatchedTokens }),
  };
  const llamaCpp = (backend: "vulkan" | "cpu"): Entrant => ({
    name: `llama.cpp ${backend === "cpu" ? "CPU" : "Vulkan"}`,
    // Activations are rounded to f16, which turns close choices; another half by chance there is none.
    repeats: 0.5,
    // On llvmpipe its kernels for a few rows give other ids at some lengths.
    tokenwiseGoldens: isSoftware && backend === "vulkan",
    open: async () =>
      openLlamaCpp({
        ...limits,
        backend,
        cache,
        gguf: await ggufOf(cache, model, onBytes),
        vulkanDevice: gpu?.device.adapterInfo.device,
        // More tokens gave no answer on llvmpipe within minutes; why is not known.
        batchSize: settings.llamaBatch ?? (isSoftware && backend === "vulkan" ? 64 : 512),
        flashAttention,
      }),
  });
  const { transformersDtype: dtype, python, torchIndex } = settings;
  const transformers: Entrant = {
    name: "transformers",
    repeats: dtype === "float32" ? 1 : 0,
    open: () => openTransformers({ model, dtype, cache, python, torchIndex, timeoutMs }),
  };
  const entrants: Record<(typeof PEERS)[number], Entrant> = {
    "llama.cpp-vulkan": llamaCpp("vulkan"),
    "llama.cpp-cpu": llamaCpp("cpu"),
    transformers,
  };
  return [ours, ...PEERS.filter((peer) => peers.includes(peer)).map((peer) => entrants[peer])];
}

/** What the project aims at: the demo model anywhere, the synthetic one on a real GPU. */
function aimsOf(
  part: (typeof PARTS)[number],
  { streams, prefills }: LoadSizes,
  isSoftware: boolean,
): Aim[] {
  const own = (load: string) => ({ contender: OURS, load });
  const theirs = { contender: "llama.cpp Vulkan", load: ONE_STREAM };
  if (part === "synthetic") {
    if (isSoftware) return [];
    const eager = { contender: "transformers", load: ONE_STREAM };
    const what = "decode, 1 stream, over";
    return [
      { what: `${what} transformers`, ours: own(ONE_STREAM), theirs: eager, atLeast: 3 },
      { what: `${what} llama.cpp Vulkan`, ours: own(ONE_STREAM), theirs, atLeast: 1 },
    ];
  }
  const [shortest] = prefills;
  return [
    {
      what: "decode, 1 stream, over llama.cpp Vulkan",
      ours: own(ONE_STREAM),
      theirs,
      atLeast: 1.5,
    },
    {
      what: `${streams} streams together over llama.cpp Vulkan's one`,
      ours: own(togetherName(streams)),
      theirs,
      atLeast: 3,
    },
    {
      what: `prefill of ${shortest} over own decode of 1 stream`,
      ours: own(prefillName(shortest)),
      theirs: own(ONE_STREAM),
      atLeast: 4,
    },
  ];
}

function outcomeLine(outcome: Outcome): string {
  const { name, device, details, agreements = [], firstIds, problem } = outcome;
  if (problem !== undefined) return `- ${name}: **not measured**: ${problem}`;
  const exact = agreements.filter(({ same, of }) => same === of).length;
  const ids =
    agreements.length === 0
      ? ""
      : `; ${exact} of ${agreements.length} goldens' greedy ids repeated exactly`;
  const first =
    firstIds === undefined || name === OURS
      ? ""
      : `; after ${firstIds.same} of ${firstIds.of} prompts of the loads its first id is ${OURS}'s`;
  return `- ${name}: ${device}; ${details}${ids}${first}`;
}
