/** `switchyard drain`: has a shard leave the cluster in order. */

import { setTimeout as delay } from "node:timers/promises";

import { z } from "zod";

import { MAX_SHARD_RANK } from "../core/placement/placement.ts";
import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { startProgress } from "../core/platform/progress.ts";
import { printAnswer } from "./print-answer.ts";
import { askRouter, routerFlags } from "./router-client.ts";

const LOOK_MS = 200;

/** A router that can plan knows by then whether others have room, milliseconds. */
const OUTLOOK_MS = 10_000;

/** That nothing has room may change within this time, as a shard that joins is planned for, milliseconds. */
const STUCK_MS = 1_000;

/** A shard that is to stay says so within this time, milliseconds: it speaks every second. */
const STAYS_MS = 5_000;

const schema = z.object({
  rank: z.int().min(0).max(MAX_SHARD_RANK).meta({
    description: "Number of the shard; must be given",
    placeholder: "RANK",
    positional: true,
  }),
  ...routerFlags,
  wait: z.boolean().default(false).meta({
    description:
      "Stay until the shard is safe to terminate, or no other has room for what it holds",
  }),
  timeout: z.number().positive().max(86_400).default(600).meta({
    description: "Longest stay with --wait",
    unit: "s",
    placeholder: "SECONDS",
  }),
  cancel: z
    .boolean()
    .default(false)
    .meta({ description: "Let the shard stay after all; not one whose process was told to end" }),
});

type DrainConfig = Readonly<z.output<typeof schema>>;

const about = {
  command: "switchyard drain",
  summary:
    "Has a shard leave: nothing new is placed on it, and its last copies get another home while it serves.",
  notes:
    "switchyard drain RANK is switchyard drain --rank RANK; flags stand before or after it. Asking twice does no harm.\n" +
    "SIGTERM to the shard does the same, and ends it when it is done. A shard that no other has room for stays marked and\n" +
    "serves on: it gives its experts away as soon as one joins; until then the exit code is 1.",
};

/** A shard, as GET /v1/shards has it. */
interface ShardView {
  readonly rank: number | "local" | null;
  readonly draining: boolean;
  /** Why it can not leave now, where its state is "draining"; null where it can. */
  readonly reason: string | null;
  readonly state: string;
  readonly epochs: readonly number[];
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
  if (cancel) return untilItStays(config);
  return wait ? waitForRelease(config) : firstWord(config);
}

/** Rejects where the shard goes on leaving: its process was told to end. */
async function untilItStays(config: DrainConfig): Promise<string> {
  const { rank } = config;
  const endsAt = performance.now() + STAYS_MS;
  while ((await shardView(config)).draining) {
    if (performance.now() > endsAt) {
      throw new Error(
        `shard ${rank} still says that it leaves, after ${STAYS_MS / 1000} s; one whose process was told to end does not stay`,
      );
    }
    await delay(LOOK_MS);
  }
  return `shard ${rank} stays\n`;
}

/** What comes of it, as far as a router knows soon. Rejects where nothing has room. */
async function firstWord(config: DrainConfig): Promise<string> {
  const { rank } = config;
  const endsAt = performance.now() + OUTLOOK_MS;
  let before: number | undefined;
  for (;;) {
    const shard = await shardView(config);
    if (shard.safe_to_terminate) return `shard ${rank} is safe to terminate\n`;
    const stuck = heldUpBy(shard);
    if (stuck !== undefined) throw new Error(stuckText(rank, stuck));
    const newest = Math.max(0, ...shard.epochs);
    before ??= newest;
    // Another placement is on its way: others have room.
    const isMoving = shard.epochs.length > 1 || newest > before;
    if (isMoving || performance.now() > endsAt) {
      return `shard ${rank} is draining; switchyard drain ${rank} --wait says when it is safe to terminate\n`;
    }
    await delay(LOOK_MS);
  }
}

async function waitForRelease(config: DrainConfig): Promise<string> {
  const { rank, timeout } = config;
  const logger = createLogger("drain", "info");
  const endsAt = performance.now() + timeout * 1000;
  let progress: ReturnType<typeof startProgress> | undefined;
  let total = 0;
  let stuckSince: number | undefined;
  let last: string | undefined;
  try {
    for (;;) {
      const shard = last === undefined ? await shardView(config) : await findShard(config);
      if (shard === undefined && last !== "away") {
        progress?.stop();
        return `shard ${rank} has left\n`;
      }
      if (shard === undefined) throw new Error(`shard ${rank} is gone`);
      last = shard.state;
      const now = performance.now();
      const held = shard.resident_bytes ?? 0;
      if (shard.safe_to_terminate) {
        progress?.update(total);
        progress?.finish();
        return `shard ${rank} is safe to terminate\n`;
      }
      if (held > total) {
        total = held;
        progress ??= startProgress(`shard ${rank}, bytes given up`, total, logger, "draining");
      }
      progress?.update(total - held);
      const stuck = heldUpBy(shard);
      stuckSince = stuck === undefined ? undefined : (stuckSince ?? now);
      if (stuck !== undefined && (now > endsAt || now - (stuckSince ?? now) >= STUCK_MS)) {
        throw new Error(stuckText(rank, stuck));
      }
      if (now > endsAt) {
        throw new Error(
          `shard ${rank} still holds ${held} bytes after --timeout ${timeout} s; GET /v1/placement says why`,
        );
      }
      await delay(LOOK_MS);
    }
  } catch (error) {
    // A bar that goes on would keep the process alive.
    progress?.stop();
    throw error;
  }
}

/** Why a shard that is to leave can not; undefined where it can, as far as its router knows. */
function heldUpBy({ state, reason }: ShardView): string | undefined {
  return state === "draining" ? (reason ?? undefined) : undefined;
}

function stuckText(rank: number, reason: string): string {
  return (
    `shard ${rank} can not leave: no shard that stays has room for what it holds: ${reason}.\n` +
    `It serves on, and gives its experts away as soon as a shard with room joins. ` +
    `switchyard drain ${rank} --cancel has it stay.`
  );
}

async function shardView(config: DrainConfig): Promise<ShardView> {
  const shard = await findShard(config);
  if (shard === undefined) throw new Error(`shard ${config.rank} is gone`);
  return shard;
}

async function findShard(config: DrainConfig): Promise<ShardView | undefined> {
  const { shards } = (await askRouter(config, "GET", "/v1/shards")) as {
    readonly shards: readonly ShardView[];
  };
  return shards.find(({ rank }) => rank === config.rank);
}
