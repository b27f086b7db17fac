/** `switchyard plan`: where experts would live if things were otherwise, asked of a router or replayed from a trace. */

import { loadConfig } from "../core/platform/config.ts";
import { flagName } from "../core/platform/flags.ts";
import { planBody, readLoad } from "./plan-body.ts";
import { type PlanConfig, planConfigSchema } from "./plan-flags.ts";
import { formatPlan, formatReplay, type PlanView } from "./plan-report.ts";
import { type ReplaySettings, runReplay, unknownRank } from "./replay-command.ts";
import { jsonText, printAnswer } from "./print-answer.ts";
import { askRouter, type RouterAddress } from "./router-client.ts";

const GIB = 2 ** 30;

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

/** Flags that mean nothing with it. */
const ROUTER_FLAGS = ["--min-copies", "--policy", "--move-bytes", "--steps", "--load"];

/** Flags whose values name ranks. */
const RANK_FLAGS = ["without", "draining", "memory", "secondsPerPair", "rtt", "bandwidth"] as const;

/** Runs the command; answers its exit code: 0, or 1 where there is no plan, with the reason on stderr. */
export async function runPlanCommand(argv: readonly string[]): Promise<number> {
  const config = loadConfig(planConfigSchema, about, argv);
  return printAnswer(about.command, async () => {
    if (config.trace === undefined) refuseWithoutTrace(argv);
    else refuseWithTrace(argv, config);
    return report(config);
  });
}

async function report(config: PlanConfig): Promise<string> {
  if (config.trace !== undefined) {
    const replayed = await runReplay({ ...replaySettings(config), trace: config.trace });
    return config.json ? jsonText(replayed) : formatReplay(replayed);
  }
  const load = config.load === undefined ? undefined : await readLoad(config.load);
  const body = planBody(config, load);
  const plan = (await askRouter(routerOf(config), "POST", "/v1/placement/plan", body)) as PlanView;
  return config.json ? jsonText(plan) : formatPlan(plan);
}

/** Throws Error for what a replay has no place for: it would be another question's answer. */
function refuseWithTrace(argv: readonly string[], config: PlanConfig): void {
  const local = RANK_FLAGS.flatMap((key) =>
    config[key]
      .filter((text) => text.startsWith("local"))
      .map((text) => `${flagName(key)} ${text}`),
  );
  const flags = [...givenOf(ROUTER_FLAGS, argv), ...local];
  if (flags.length === 0) return;
  throw new Error(
    `${flags.join(", ")}: of a router's plan; a replay shows every policy from static runs on, on shards alone`,
  );
}

/** Throws Error for flags that only a replay heeds. */
function refuseWithoutTrace(argv: readonly string[]): void {
  const flags = givenOf(REPLAY_FLAGS, argv);
  if (flags.length === 0) return;
  throw new Error(
    `${flags.join(", ")}: of a replay, which --trace asks for; a router plans for its own shards, which --memory and --without change`,
  );
}

/** Those of the flags that the command line has. Variables may be meant for other commands: they are let pass. */
function givenOf(flags: readonly string[], argv: readonly string[]): string[] {
  return flags.filter((flag) => argv.some((one) => one === flag || one.startsWith(`${flag}=`)));
}

function routerOf({ url, apiKey }: PlanConfig): RouterAddress {
  return { url, apiKey };
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
