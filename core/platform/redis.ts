/** Redis, as every process here uses it: never waited for without a deadline, nothing queued while it is away. */

import { Redis } from "ioredis";

import type { Log } from "./log.ts";

/** Longest wait for a TCP connection, milliseconds. */
const CONNECT_TIMEOUT_MS = 2_000;

/** Longest wait for an answer, milliseconds; the connection is then given up and made anew. */
const COMMAND_TIMEOUT_MS = 1_000;

/** Longest pause between two attempts to connect, milliseconds. */
const MAX_RETRY_DELAY_MS = 2_000;

/** Redis does not answer, or refuses to. Whether a command took effect is then unknown. */
export class RedisUnavailableError extends Error {
  override readonly name = "RedisUnavailableError";
}

/** A command's name and arguments. */
export type RedisCommand = readonly [name: string, ...args: (string | number | Buffer)[]];

/** One reconnecting connection. */
export interface RedisConnection {
  /** URL without its password. */
  readonly address: string;
  /** Whether commands are sent now; while not, they are refused at once. */
  isReady(): boolean;
  /** Waits until commands can be sent. Rejects with RedisUnavailableError after `timeoutMs`, naming address and last reason. */
  ready(timeoutMs: number): Promise<void>;
  /**
   * Sends commands in one write and waits for all answers: numbers, Buffers, null or arrays of them, one per command.
   * Rejects with RedisUnavailableError where there is no connection or no answer in time, else with the first error answer.
   */
  pipeline(commands: readonly RedisCommand[]): Promise<unknown[]>;
  /** Ends the connection and every attempt to make one; waiting commands are rejected. */
  close(): void;
}

/** A Redis URL without its password, for messages. */
function redisAddress(url: string): string {
  return url.replace(/\/\/[^@/]*@/, "//");
}

/** Opens a connection that stays open until `close()`; returns at once, connected or not. */
export function connectRedis(url: string, log?: Pick<Log, "info" | "warn">): RedisConnection {
  const address = redisAddress(url);
  const redis = new Redis(url, {
    protocol: 2,
    connectTimeout: CONNECT_TIMEOUT_MS,
    commandTimeout: COMMAND_TIMEOUT_MS,
    // Gives up a connection whose peer hangs, so that nothing piles up in its socket.
    socketTimeout: COMMAND_TIMEOUT_MS,
    enableOfflineQueue: false,
    autoResendUnfulfilledCommands: false,
    maxRetriesPerRequest: 0,
    disableClientInfo: true,
    retryStrategy: (attempt) => Math.min(50 * 2 ** Math.min(attempt, 10), MAX_RETRY_DELAY_MS),
  });
  let lastReason = "no answer";
  let warned = false;
  redis.on("error", (error: Error) => {
    lastReason = error.message === "" ? error.name : error.message;
    if (!warned)
      log?.warn({ redis: address, reason: lastReason }, "Redis is not available; trying again");
    warned = true;
  });
  redis.on("ready", () => {
    log?.info({ redis: address }, "Redis connected");
    warned = false;
  });
  const isReady = () => redis.status === "ready";

  async function pipeline(commands: readonly RedisCommand[]): Promise<unknown[]> {
    if (!isReady()) throw new RedisUnavailableError(`Redis at ${address}: ${lastReason}`);
    const batch = redis.pipeline();
    for (const [name, ...args] of commands) batch.callBuffer(name, ...args);
    const replies = await batch.exec();
    return (replies ?? []).map(([error, reply]) => {
      if (error === null) return reply;
      // Redis's own refusals; everything else is a lost or silent connection.
      if (error.name === "ReplyError") throw error;
      throw new RedisUnavailableError(`Redis at ${address}: ${error.message}`);
    });
  }

  return {
    address,
    isReady,
    pipeline,
    ready: (timeoutMs) =>
      new Promise((resolve, reject) => {
        if (isReady()) return resolve();
        const onReady = () => {
          clearTimeout(timer);
          resolve();
        };
        const timer = setTimeout(() => {
          redis.off("ready", onReady);
          reject(
            new RedisUnavailableError(
              `Redis at ${address} is not there after ${timeoutMs} ms: ${lastReason}`,
            ),
          );
        }, timeoutMs);
        redis.once("ready", onReady);
      }),
    close: () => redis.disconnect(),
  };
}
