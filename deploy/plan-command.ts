/** `switchyard plan`: where experts would live if things were otherwise, asked of a router or replayed from a trace. */

import { z } from "zod";

import { POLICIES } from "../core/placement/input.ts";
import { loadConfig } from "../core/platform/config.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import { formatPlan, formatReplay, type PlanView } from "./plan-report.ts";
import { type ReplaySettings, runReplay, unknownRank } from "./replay-command.ts";
import { jsonText, printAnswer } from "./print-answer.ts";
import { askRouter, type RouterAddress, routerFlags } from "./router-client.ts";

const GIB = 2 ** 30;

const ranks = (description: string) =>
  z
    .array(z.string().regex(/^\d{1,5}$/))
    .default([])
    .meta({ description, placeholder: "N,…", expectation: "ranks like 1,3" });

const numbers = (description: string, unit: string, defaultText: string) =>
  z
    .array(z.string().regex(/^(\d{1,5}=)?\d+(\.\d+)?(e-?\d+)?$/))
    .default([])
    .meta({
      description,
      placeholder: `RANK=${unit.toUpperCase()},…`,
      expectation: `${unit} of shards like 0=8,3=16, with --trace also of all like 8`,
      defaultText,
    });

const schema = z.object({
  ...routerFlags,
  without: ranks("Shards that are supposed to be gone; none: all are there"),
  draining: ranks("Shards that are supposed to leave; none: those that do"),
  memory: numbers(
    "Memory of shards; a rank that there is not is added",
    "GiB",
    "as it is; with --trace see --redundancy",
  ),
  secondsPerPair: numbers(
    "Time of one row through one expert",
    "seconds",
    "as measured; 5e-5 with --trace",
  ),
  rtt: numbers("Round trip to shards", "seconds", "as measured; 3e-4 with --trace"),
  bandwidth: numbers("Bytes per second to shards", "bytes", "as measured; 1e9 with --trace"),
  tokensPerStep: z.number().positive().max(1e6).optional().meta({
    description: "Tokens of a step",
    unit: "tokens",
    placeholder: "N",
    defaultText: "as forecast; 64 with --trace",
  }),
  fromNothing: z.boolean().default(false).meta({ description: "Plan as if nothing were held" }),
  minCopies: z.int().min(1).max(64).optional().meta({
    description: "Copies of each expert at least, as far as memory goes",
    placeholder: "N",
    defaultText: "as the router's",
  }),
  policy: z.enum(POLICIES).optional().meta({
    description: "How experts are placed, as --placement-policy of a router says it",
    defaultText: "as the router's",
  }),
  trace: z.string().min(1).optional().meta({
    description:
      "Replay recorded routing instead of asking a router: a safetensors file with topk_ids [tokens, MoE layers, top-k]",
    placeholder: "FILE",
    defaultText: "none: a router is asked",
  }),
  model: serviceOptions.model.meta({
    ...serviceOptions.model.meta(),
    description: "Model that the trace is of; only its config.json is read",
  }),
  shards: z.int().min(1).max(1024).default(8).meta({
    description: "Shards of the replay, ranks from 0",
    placeholder: "N",
  }),
  redundancy: z.number().min(0).max(16).default(0.25).meta({
    description:
      "Memory of a replay's shards beyond what all experts take, as a part of it; --memory goes before",
    placeholder: "PART",
  }),
  attentionMs: z.number().min(0).max(1e6).optional().meta({
    description: "Time of a replay's step beside its MoE layers: predicted TPOT is both",
    unit: "milliseconds",
    placeholder: "MS",
    defaultText: "as the router that recorded the trace measured it, else 0",
  }),
  window: z.int().min(64).max(1e7).default(2048).meta({
    description: "Tokens of the replay after which a new plan is made",
    unit: "tokens",
    placeholder: "N",
  }),
  expertsBits: serviceOptions.expertsBits,
  expertsGroup: serviceOptions.expertsGroup,
  json: z.boolean().default(false).meta({ description: "JSON instead of text" }),
});

type PlanConfig = Readonly<z.output<typeof schema>>;

const about = {
  command: "switchyard plan",
  summary: "Says where experts would live if things were otherwise; nothing is changed.",
  notes:
    "With --trace, each window is planned on those before it and judged by its own steps: predicted TPOT (the MoE layers'\n" +
    "time and --attention-ms), imbalance, rows sent and bytes moved of static runs, EPLB and the planner. Shards of\n" +
    "--draining give their experts up with the first plan; --from-nothing: the planner's first plan does not go by static runs.",
};

/** Flags that mean nothing without --trace. */
const REPLAY_FLAGS = ["--shards", "--redundancy", "--window", "--attention-ms"];

/** Runs the command; answers its exit code: 0, or 1 where there is no plan, with the reason on stderr. */
export async function runPlanCommand(argv: readonly string[]): Promise<number> {
  const config = loadConfig(schema, about, argv);
  return printAnswer(about.command, async () => {
    if (config.trace === undefined) refuseWithoutTrace(argv);
    return report(config);
  });
}

async function report(config: PlanConfig): Promise<string> {
  if (config.trace !== undefined) {
    refuseWithTrace(config);
    const replayed = await runReplay({ ...replaySettings(config), trace: config.trace });
    return config.json ? jsonText(replayed) : formatReplay(replayed);
  }
  const plan = (await askRouter(
    routerOf(config),
    "POST",
    "/v1/placement/plan",
    planBody(config),
  )) as PlanView;
  return config.json ? jsonText(plan) : formatPlan(plan);
}

/** Throws Error for what a replay has no place for: it would be another question's answer. */
function refuseWithTrace({ minCopies, policy }: PlanConfig): void {
  const given = {
    "--min-copies": minCopies !== undefined,
    "--policy": policy !== undefined,
  };
  const flags = Object.entries(given).flatMap(([flag, is]) => (is ? [flag] : []));
  if (flags.length === 0) return;
  throw new Error(
    `${flags.join(", ")}: of a router's plan; a replay shows every policy from static runs on`,
  );
}

/** Throws Error for flags that only a replay heeds. Variables may be meant for other commands: they are let pass. */
function refuseWithoutTrace(argv: readonly string[]): void {
  const given = REPLAY_FLAGS.filter((flag) =>
    argv.some((one) => one === flag || one.startsWith(`${flag}=`)),
  );
  if (given.length === 0) return;
  throw new Error(
    `${given.join(", ")}: of a replay, which --trace asks for; a router plans for its own shards, which --memory and --without change`,
  );
}

function routerOf({ url, apiKey }: PlanConfig): RouterAddress {
  return { url, apiKey };
}

/** Body of POST /v1/placement/plan that the flags come to. Throws Error for a value without a rank. */
function planBody(config: PlanConfig): object {
  const shards = new Map<number, Record<string, unknown>>();
  const change = (rank: number, fields: Record<string, unknown>) =>
    shards.set(rank, { ...shards.get(rank), rank, ...fields });
  for (const rank of config.without) change(Number(rank), { absent: true });
  for (const rank of config.draining) change(Number(rank), { draining: true });
  const fields = [
    ["memory", "memory_bytes", GIB],
    ["secondsPerPair", "seconds_per_pair", 1],
    ["rtt", "rtt_seconds", 1],
    ["bandwidth", "bytes_per_second", 1],
  ] as const;
  for (const [flag, field, unit] of fields) {
    for (const text of config[flag]) {
      const [rank, value] = text.split("=");
      if (value === undefined) {
        throw new Error(`--${kebab(flag)} ${text}: name the shard, like 0=${text}`);
      }
      change(Number(rank), { [field]: Math.round(Number(value) * unit * 1e12) / 1e12 });
    }
  }
  return {
    shards: [...shards.values()],
    ...(config.tokensPerStep !== undefined && { tokens_per_step: config.tokensPerStep }),
    ...(config.fromNothing && { from: "nothing" }),
    ...(config.minCopies !== undefined && { min_copies: config.minCopies }),
    ...(config.policy !== undefined && { policy: config.policy }),
  };
}

function replaySettings(config: PlanConfig): Omit<ReplaySettings, "trace"> {
  const { model, shards, redundancy, window, tokensPerStep = 64 } = config;
  const { expertsBits, expertsGroup } = config;
  return {
    model,
    shards,
    without: config.without.map(Number),
    draining: config.draining.map(Number),
    fromNothing: config.fromNothing,
    attentionMs: config.attentionMs,
    redundancy,
    window,
    tokensPerStep,
    expertsBits,
    expertsGroup,
    memoryBytes: perShard("memory", config.memory, shards)?.map((gib) => gib && gib * GIB),
    secondsPerPair: perShard("seconds-per-pair", config.secondsPerPair, shards),
    rttSeconds: perShard("rtt", config.rtt, shards),
    bytesPerSecond: perShard("bandwidth", config.bandwidth, shards),
  };
}

/** One value for each shard; undefined where nothing was given, in parts where some were. Throws Error for an unknown rank. */
function perShard(
  flag: string,
  texts: readonly string[],
  shards: number,
): (number | undefined)[] | undefined {
  if (texts.length === 0) return undefined;
  const values: (number | undefined)[] = Array.from({ length: shards }, () => undefined);
  for (const text of texts) {
    const [rank, value] = text.split("=");
    if (value === undefined) values.fill(Number(rank));
    else if (Number(rank) >= shards) throw unknownRank(flag, Number(rank), shards);
    else values[Number(rank)] = Number(value);
  }
  return values;
}

function kebab(name: string): string {
  return name.replaceAll(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}
