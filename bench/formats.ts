/** What formats of experts cost: errors by layer, and held-out perplexity of each: `npm run bench -- formats`. */

import { z } from "zod";

import { createCpuExpertDevice } from "../core/cpu/expert-device.ts";
import type { ExpertDevice } from "../core/expert-device.ts";
import { allIn, EXPERT_FORMATS, type ExpertFormat } from "../core/expert-format.ts";
import { commonFormat, expertsSetting, type ExpertsFlags } from "../core/expert-formats.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { createGpuExpertDevice } from "../core/gpu/expert-device.ts";
import { openDevice } from "../core/gpu/open-device.ts";
import { type Checkpoint, openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { expertBytes } from "../core/weights.ts";
import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { createProgressView } from "../core/platform/progress.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { createCpuRunner } from "../router-service/engine/cpu/cpu-runner.ts";
import { createGpuRunner } from "../router-service/engine/gpu/gpu-runner.ts";
import { loadAllExperts } from "../router-service/engine/local-experts.ts";
import type { ModelRunner } from "../router-service/engine/model-runner.ts";
import { createRunner } from "../router-service/runner.ts";
import { scoreWindow, windowLimits } from "./formats/held-out.ts";
import { comparingExperts, ErrorTable, weightErrors } from "./formats/layer-errors.ts";
import { domainWindows, readReference } from "./held-out/scorer.ts";
import { perplexity, type WindowScore } from "./held-out/windows.ts";

const schema = z.object({
  model: serviceOptions.model,
  device: serviceOptions.device,
  adapter: serviceOptions.adapter,
  windows: z.int().min(1).default(8).meta({
    description: "Held-out windows of each domain, from its beginning",
    placeholder: "N",
  }),
  errorWindows: z.int().min(0).default(2).meta({
    description: "Windows whose hidden states the errors by layer are measured on; 0: no errors",
    placeholder: "N",
  }),
});

type Settings = Readonly<z.output<typeof schema>>;

/** One way to keep a model's weights. */
export interface FormatSetting extends ExpertsFlags {
  readonly name: string;
  readonly weights: "f16" | "f32";
}

const four = { weights: "f16", expertsBits: "4" } as const;

/** The settings that are compared, the exact one first. */
export const FORMAT_SETTINGS: readonly FormatSetting[] = [
  { name: "--weights f32", weights: "f32", expertsBits: "auto", expertsGroup: "32" },
  { name: "--weights f16", weights: "f16", expertsBits: "auto", expertsGroup: "32" },
  { name: "--experts-bits 8", weights: "f16", expertsBits: "8", expertsGroup: "32" },
  { name: "--experts-bits 4", ...four, expertsGroup: "32" },
  { name: "--experts-bits 4 --experts-group 64", ...four, expertsGroup: "64" },
  { name: "--experts-bits 4 --experts-group 128", ...four, expertsGroup: "128" },
  { name: "--experts-bits mxfp4", weights: "f16", expertsBits: "mxfp4", expertsGroup: "32" },
];

/** Where models are run. */
export interface FormatBench {
  readonly checkpoint: Checkpoint;
  /** Tokens of a window. */
  readonly windowSize: number;
  /** Opens a device, which the caller closes; undefined: the CPU. */
  readonly open: () => Promise<Gpu | undefined>;
}

const logger = createLogger("bench", "silent");

/** Scores of windows, in their order, by the model with a setting; a wire in f32 leaves hidden states as they are. */
export async function scoreSetting(
  { checkpoint, windowSize, open }: FormatBench,
  setting: FormatSetting,
  windows: readonly (readonly number[])[],
  onScore: () => void = () => {},
): Promise<WindowScore[]> {
  const gpu = await open();
  const limits = windowLimits(windowSize);
  const settings = { ...setting, wire: "f32", microBatches: "auto", tune: "auto" } as const;
  const runner = await createRunner({
    checkpoint,
    settings,
    limits,
    gpu,
    cluster: undefined,
    logger,
  });
  const scores: WindowScore[] = [];
  for (const window of windows) {
    scores.push(await scoreWindow(runner, window));
    onScore();
  }
  runner.close();
  gpu?.close();
  return scores;
}

/** Errors of sums over experts by layer and format, on the model's hidden states of some windows. */
export async function outputErrors(
  { checkpoint, windowSize, open }: FormatBench,
  formats: readonly ExpertFormat[],
  windows: readonly (readonly number[])[],
): Promise<ErrorTable> {
  const gpu = await open();
  const { config } = checkpoint;
  const deviceIn = async (format: ExpertFormat): Promise<ExpertDevice> => {
    const device =
      gpu === undefined
        ? createCpuExpertDevice(config)
        : await createGpuExpertDevice(gpu, config, [format]);
    await loadAllExperts(checkpoint, device, allIn(format), undefined);
    return device;
  };
  const exact = await deviceIn("f32");
  const others = new Map<ExpertFormat, ExpertDevice>();
  for (const format of formats) others.set(format, await deviceIn(format));
  const table = new ErrorTable();
  const runExperts = comparingExperts(exact, others, table);
  const common = {
    checkpoint,
    weights: "f32",
    wire: "f32",
    limits: windowLimits(windowSize),
  } as const;
  const runner: ModelRunner =
    gpu === undefined
      ? await createCpuRunner({ ...common, runExperts })
      : await createGpuRunner(gpu, {
          ...common,
          experts: { kind: "remote", runExperts, microBatches: "1" },
        });
  for (const window of windows) await scoreWindow(runner, window);
  runner.close();
  for (const device of [exact, ...others.values()]) device.close();
  gpu?.close();
  return table;
}

function percent(value: number): string {
  const percents = 100 * value;
  return `${percents > 0 && percents < 1e-3 ? percents.toExponential(1) : percents.toPrecision(3)} %`;
}

/** A Markdown table with a row per layer and a column per format. */
function errorMarkdown(
  layers: readonly number[],
  formats: readonly ExpertFormat[],
  table: ErrorTable,
): string {
  return [
    `| layer | ${formats.join(" | ")} |`,
    `|---|${formats.map(() => "---|").join("")}`,
    ...layers.map((layer) => {
      const cells = formats.map((format) => percent(table.of(layer, format).relative));
      return `| ${layer} | ${cells.join(" | ")} |`;
    }),
  ].join("\n");
}

async function report(settings: Settings): Promise<void> {
  const { model } = settings;
  const checkpoint = await openCheckpoint(model);
  const { config } = checkpoint;
  const reference = await readReference(model);
  const domains = Object.keys(reference.domains);
  const windowsOf = new Map<string, number[][]>();
  for (const domain of domains) {
    const all = await domainWindows(model, reference, domain);
    windowsOf.set(domain, all.slice(0, settings.windows));
  }
  const bench: FormatBench = {
    checkpoint,
    windowSize: reference.method.window,
    open: () => openDevice(settings.device, settings.adapter, logger),
  };
  const layers = moeLayers(config);
  const formats = EXPERT_FORMATS.filter((format) => format !== "f32");
  if (settings.errorWindows > 0) {
    const some = [...windowsOf.values()].flat().slice(0, settings.errorWindows);
    console.log(`### Error of the weights of routed experts against the checkpoint's\n`);
    console.log(`${errorMarkdown(layers, formats, await weightErrors(checkpoint, formats))}\n`);
    console.log(`### Error of the layer's sums over experts, on the model's own hidden states\n`);
    console.log(`${errorMarkdown(layers, formats, await outputErrors(bench, formats, some))}\n`);
  }
  console.log(`### Held-out perplexity, ${settings.windows} windows of each domain at most\n`);
  console.log(`| setting | bytes per expert | ${domains.join(" | ")} | all | against f32 |`);
  console.log(`|---|---|${domains.map(() => "---|").join("")}---|---|`);
  const progress = createProgressView(logger);
  let exact: number | undefined;
  for (const setting of FORMAT_SETTINGS) {
    const windows = [...windowsOf.values()].flat();
    let done = 0;
    const scores = await scoreSetting(bench, setting, windows, () =>
      progress.update(setting.name, ++done, windows.length),
    );
    let next = 0;
    const byDomain = [...windowsOf.values()].map((of) =>
      perplexity(scores.slice(next, (next += of.length))),
    );
    const all = perplexity(scores);
    exact ??= all;
    const { storedExperts } = checkpoint;
    const format = commonFormat(expertsSetting(setting), setting.weights, storedExperts);
    const bytes = expertBytes(config, format);
    const change = all / exact - 1;
    const cells = [...byDomain, all].map((value) => value.toFixed(4)).join(" | ");
    const against = `${change < 0 ? "" : "+"}${(100 * change).toFixed(3)} %`;
    console.log(`| \`${setting.name}\` | ${bytes} | ${cells} | ${against} |`);
  }
  progress.close();
  await checkpoint.close();
}

/** Runs the program; returns the exit status. */
export async function runFormatsCommand(argv: string[]): Promise<number> {
  const about = {
    command: "npm run bench -- formats",
    summary:
      "What formats of experts cost a model with held-out texts: errors by layer, and perplexity of each setting.",
  };
  await report(loadConfig(schema, about, argv));
  return 0;
}
