/** The offline half of `switchyard plan`: a model's sizes, a trace and supposed shards, replayed. */

import { countText, offersText } from "../core/amounts.ts";
import {
  commonFormat,
  expertsSetting,
  type ExpertsFlags,
  formatsOf,
} from "../core/expert-formats.ts";
import { moeLayers } from "../core/model/config.ts";
import { readModelConfig } from "../core/model/load-config.ts";
import { readOverlay } from "../core/model/overlay.ts";
import { createLogger } from "../core/platform/log.ts";
import { startProgress } from "../core/platform/progress.ts";
import { expertBytes } from "../core/weights.ts";
import { plannerInput, type ShardFacts } from "../router-service/cluster/planning/planner-input.ts";
import { replay, type ReplayResult } from "./replay.ts";
import { readTrace } from "./routing-trace.ts";

/** What a replay is made of; lists have one value per shard, undefined where it is the default. */
export interface ReplaySettings extends ExpertsFlags {
  readonly trace: string;
  readonly model: string;
  readonly shards: number;
  /** Ranks that are gone: the others have the memory that they had beside them. */
  readonly without: readonly number[];
  /** Ranks that hold their part at first, and give it up with the first plan. */
  readonly draining: readonly number[];
  readonly fromNothing: boolean;
  /** Milliseconds of a step beside its MoE layers; undefined: as recorded, else 0. */
  readonly attentionMs: number | undefined;
  /** Part of all experts' bytes that shards have room for beyond them. */
  readonly redundancy: number;
  /** Tokens between two plans. */
  readonly window: number;
  readonly tokensPerStep: number;
  readonly memoryBytes: readonly (number | undefined)[] | undefined;
  readonly secondsPerPair: readonly (number | undefined)[] | undefined;
  readonly rttSeconds: readonly (number | undefined)[] | undefined;
  readonly bytesPerSecond: readonly (number | undefined)[] | undefined;
}

/** What one policy's steps take in all, each giving every sequence a token: predicted TPOT. */
export interface PredictedTpot extends ReplayResult {
  readonly meanTpotSeconds: number;
  readonly p99TpotSeconds: number;
}

/** What a replay came to. */
export interface ReplayReport {
  readonly model: string;
  readonly tokens: number;
  readonly windowTokens: number;
  readonly stepTokens: number;
  readonly shards: number;
  readonly attentionSeconds: number;
  /** Where attentionSeconds are from. */
  readonly attentionFrom: "given" | "recorded" | "unknown";
  readonly results: readonly PredictedTpot[];
}

/** What is said of a rank that a flag names and a replay has not. */
export function unknownRank(flag: string, rank: number, numShards: number): Error {
  return new Error(`--${flag} ${rank}: ranks of --shards ${numShards} are 0 to ${numShards - 1}`);
}

const SECONDS_PER_PAIR = 5e-5;
const RTT_SECONDS = 3e-4;
const BYTES_PER_SECOND = 1e9;

/** Replays a trace, with a progress on stderr. Rejects where model or trace can not be read, the trace is too short, or shards lack room. */
export async function runReplay(settings: ReplaySettings): Promise<ReplayReport> {
  const { tokensPerStep, shards: numShards } = settings;
  const config = await readModelConfig(settings.model);
  const { numExperts, numExpertsPerToken: topK } = config;
  const layers = moeLayers(config);
  const shape = { numMoeLayers: layers.length, numExperts, topK };
  const trace = await readTrace(settings.trace, shape);
  // Whole steps.
  const windowTokens = Math.max(1, Math.floor(settings.window / tokensPerStep)) * tokensPerStep;
  if (trace.numTokens < 2 * windowTokens) {
    throw new Error(
      `${settings.trace} has ${trace.numTokens} tokens, fewer than two windows of ${windowTokens}: --window`,
    );
  }
  const overlay = await readOverlay(settings.model, config);
  const formatOf = formatsOf(overlay, commonFormat(expertsSetting(settings), "f16", undefined));
  const bytesOf = (layer: number) =>
    Array.from({ length: numExperts }, (_, expert) => expertBytes(config, formatOf(layer, expert)));
  const allBytes = layers.flatMap(bytesOf).reduce((sum, bytes) => sum + bytes, 0);
  const even = Math.ceil((allBytes / numShards) * (1 + settings.redundancy));
  for (const flag of ["without", "draining"] as const) {
    const unknown = settings[flag].find((rank) => rank >= numShards);
    if (unknown !== undefined) throw unknownRank(flag, unknown, numShards);
  }
  for (const [rank, bytes = BYTES_PER_SECOND] of settings.bytesPerSecond?.entries() ?? []) {
    if (bytes < 1) {
      throw new Error(`--bandwidth ${rank}=${bytes}: expected at least 1 byte per second`);
    }
  }
  const all = Array.from({ length: numShards }, (_, rank): ShardFacts => ({
    rank,
    memoryBytes: settings.memoryBytes?.[rank] ?? even,
    draining: settings.draining.includes(rank),
    secondsPerPair: settings.secondsPerPair?.[rank] ?? SECONDS_PER_PAIR,
    rttSeconds: settings.rttSeconds?.[rank] ?? RTT_SECONDS,
    bytesPerSecond: settings.bytesPerSecond?.[rank] ?? BYTES_PER_SECOND,
    loadBytesPerSecond: undefined,
  }));
  const shards = all.filter(({ rank }) => !settings.without.includes(rank));
  const staying = shards.filter(({ draining }) => !draining);
  const offered = staying.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  if (offered < allBytes) {
    throw new Error(
      `all experts take ${offersText([allBytes])}; ${countText(staying.length, "shard offers", "shards offer")} ${offersText([offered])}`,
    );
  }
  const cells = layers.length * numExperts;
  const input = plannerInput({
    config,
    formatOf,
    wire: "f16",
    shards,
    expected: { load: new Float64Array(cells), deviation: new Float64Array(cells) },
    moves: { bytes: 0, steps: 1 },
    minCopies: 1,
  });
  const total = Math.floor(trace.numTokens / windowTokens);
  const progress = startProgress("windows", total, createLogger("plan", "info"), "planning");
  let results: ReplayResult[];
  try {
    results = replay(
      trace,
      {
        ...input,
        windowTokens,
        stepTokens: tokensPerStep,
        moveBytes: allBytes,
        fromNothing: settings.fromNothing,
      },
      (done) => progress.update(done),
    );
  } catch (error) {
    // A bar that goes on would keep the process alive.
    progress.stop();
    throw error;
  }
  progress.finish();
  const attentionSeconds = (settings.attentionMs ?? trace.restMs ?? 0) / 1000;
  return {
    model: settings.model,
    tokens: trace.numTokens,
    windowTokens,
    stepTokens: tokensPerStep,
    shards: shards.length,
    attentionSeconds,
    attentionFrom:
      settings.attentionMs !== undefined
        ? "given"
        : trace.restMs === undefined
          ? "unknown"
          : "recorded",
    results: results.map((result) =>
      Object.assign({}, result, {
        meanTpotSeconds: result.meanSeconds + attentionSeconds,
        p99TpotSeconds: result.p99Seconds + attentionSeconds,
      }),
    ),
  };
}
