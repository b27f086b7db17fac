/** `switchyard drain`: has a shard leave the cluster in order. */

import { setTimeout as delay } from "node:timers/promises";

import { z } from "zod";

import { MAX_SHARD_RANK } from "../core/placement/placement.ts";
import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { startProgress } from "../core/platform/progress.ts";
import { printAnswer } from "./print-answer.ts";
import { askRouter, routerFlags } from "./router-client.ts";

const LOOK_MS = 300;

const schema = z.object({
  rank: z.int().min(0).max(MAX_SHARD_RANK).meta({
    description: "Number of the shard; must be given",
    placeholder: "RANK",
    positional: true,
  }),
  ...routerFlags,
  wait: z.boolean().default(false).meta({
    description: "Stay until the shard is safe to terminate",
  }),
  timeout: z.number().positive().max(86_400).default(600).meta({
    description: "Longest stay with --wait",
    unit: "s",
    placeholder: "SECONDS",
  }),
  cancel: z.boolean().default(false).meta({ description: "Let the shard stay after all" }),
});

type DrainConfig = Readonly<z.output<typeof schema>>;

const about = {
  command: "switchyard drain",
  summary:
    "Has a shard leave: nothing new is placed on it, and its last copies get another home while it serves.",
  notes:
    "switchyard drain RANK is switchyard drain --rank RANK; flags stand before or after it. Asking twice does no harm.\n" +
    "SIGTERM to the shard does the same, and ends it when it is done.",
};

/** A shard, as GET /v1/shards has it. */
interface ShardView {
  readonly rank: number | null;
  readonly draining: boolean;
  readonly safe_to_terminate: boolean;
  readonly resident_bytes: number | null;
}

/** Runs the command; answers its exit code: 0, or 1 where the shard can not leave, with the reason on stderr. */
export async function runDrainCommand(argv: readonly string[]): Promise<number> {
  const config = loadConfig(schema, about, argv);
  return printAnswer(about.command, () => drain(config));
}

async function drain(config: DrainConfig): Promise<string> {
  const { rank, cancel, wait } = config;
  await askRouter(config, cancel ? "DELETE" : "POST", `/v1/shards/${rank}/drain`);
  if (cancel) return `shard ${rank} stays\n`;
  if (wait) return waitForRelease(config);
  const { safe_to_terminate } = await shardView(config);
  return safe_to_terminate
    ? `shard ${rank} is safe to terminate\n`
    : `shard ${rank} is draining; switchyard drain ${rank} --wait says when it is safe to terminate\n`;
}

async function waitForRelease(config: DrainConfig): Promise<string> {
  const { rank, timeout } = config;
  const logger = createLogger("drain", "info");
  const endsAt = performance.now() + timeout * 1000;
  let progress: ReturnType<typeof startProgress> | undefined;
  let total = 0;
  for (;;) {
    const shard = await shardView(config);
    const held = shard.resident_bytes ?? 0;
    if (shard.safe_to_terminate) {
      progress?.update(total);
      progress?.finish();
      return `shard ${rank} is safe to terminate\n`;
    }
    if (held > total) {
      total = held;
      progress ??= startProgress(`shard ${rank}, bytes given up`, total, logger);
    }
    progress?.update(total - held);
    if (performance.now() > endsAt) {
      progress?.stop();
      throw new Error(
        `shard ${rank} still holds ${held} bytes after --timeout ${timeout} s; GET /v1/placement says why`,
      );
    }
    await delay(LOOK_MS);
  }
}

async function shardView(config: DrainConfig): Promise<ShardView> {
  const { shards } = (await askRouter(config, "GET", "/v1/shards")) as {
    readonly shards: readonly ShardView[];
  };
  const shard = shards.find(({ rank }) => rank === config.rank);
  if (shard === undefined) throw new Error(`shard ${config.rank} is gone`);
  return shard;
}
