/** What the flags of `switchyard plan` ask of a router. */

import {
  type JsonObject,
  JsonFileError,
  readJsonFile,
} from "../core/model/checkpoint/json-file.ts";
import { flagName } from "../core/platform/flags.ts";
import type { PlanConfig } from "./plan-flags.ts";

const GIB = 2 ** 30;

/** Far beyond what a router takes in a body. */
const MAX_LOAD_BYTES = 64 * 2 ** 20;

/** Body of POST /v1/placement/plan that the flags come to, with the load of `--load`. Throws Error for a value without a rank. */
export function planBody(config: PlanConfig, load: JsonObject | undefined): object {
  const shards = new Map<number | "local", Record<string, unknown>>();
  const change = (name: string, fields: Record<string, unknown>) => {
    const rank = name === "local" ? name : Number(name);
    shards.set(rank, { ...shards.get(rank), rank, ...fields });
  };
  for (const rank of config.without) change(rank, { absent: true });
  for (const rank of config.draining) change(rank, { draining: true });
  const fields = [
    ["memory", "memory_bytes", (gib: number) => Math.floor(gib * GIB)],
    ["secondsPerPair", "seconds_per_pair", Number],
    ["rtt", "rtt_seconds", Number],
    ["bandwidth", "bytes_per_second", Number],
  ] as const;
  for (const [flag, field, inUnit] of fields) {
    for (const text of config[flag]) {
      const [rank, value] = text.split("=");
      if (value === undefined) {
        throw new Error(`${flagName(flag)} ${text}: name the shard, like 0=${text}`);
      }
      change(rank, { [field]: inUnit(Number(value)) });
    }
  }
  return {
    ...(shards.size > 0 && { shards: [...shards.values()] }),
    ...(config.tokensPerStep !== undefined && { tokens_per_step: config.tokensPerStep }),
    ...(load && { load }),
    ...(config.moveBytes !== undefined && { move_bytes: config.moveBytes }),
    ...(config.steps !== undefined && { steps: config.steps }),
    ...(config.fromNothing && { from: "nothing" }),
    ...(config.minCopies !== undefined && { min_copies: config.minCopies }),
    ...(config.policy !== undefined && { policy: config.policy }),
  };
}

/** The load that a file says; which layers and experts there are, the router knows. Rejects with an Error that names the flag and file. */
export async function readLoad(file: string): Promise<JsonObject> {
  try {
    const load = await readJsonFile(file, MAX_LOAD_BYTES);
    if (load !== undefined) return load;
  } catch (error) {
    if (!(error instanceof JsonFileError)) throw error;
    throw new Error(`--load ${error.message}`, { cause: error });
  }
  throw new Error(`--load ${file}: no such file`);
}
