/** Switchyard's own engine as a contender, in this process: tokens in, tokens out, no HTTP. */

import { inTime } from "../core/gpu/deadline.ts";
import type { Gpu } from "../core/gpu/device.ts";
import { decideWeights } from "../core/handshake.ts";
import { openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import { createLogger } from "../core/platform/log.ts";
import type { DispatchReport } from "../router-service/cluster/dispatch/attempts.ts";
import { createCluster } from "../router-service/cluster/cluster.ts";
import { planInputOf } from "../router-service/cluster/planning/first-placement.ts";
import { createEngine } from "../router-service/engine/engine.ts";
import type { Engine } from "../router-service/engine/request.ts";
import type { MicroBatchSetting } from "../router-service/engine/micro-batches.ts";
import { BLOCK_SIZE } from "../router-service/engine/model-runner.ts";
import { runnerLimits } from "../router-service/engine/runner-limits.ts";
import { routerConfigSchema } from "../router-service/config.ts";
import { createRunner } from "../router-service/runner.ts";
import { placeFirst } from "./rig/first-placement.ts";
import { greedy } from "./rig/greedy.ts";
import type { Contender, ContenderLimits, Generation } from "./peers/contender.ts";

/** What the engine runs, and on what. */
export interface SwitchyardOptions extends ContenderLimits {
  readonly model: string;
  /** Absent: the CPU. */
  readonly gpu: Gpu | undefined;
  readonly weights: "auto" | "f16" | "f32";
  /** Addresses of shards that hold the experts; absent: the engine holds them itself. */
  readonly shards?: readonly string[];
  /** Absent: auto. */
  readonly microBatches?: MicroBatchSetting;
  /** Called after every dispatch to a shard. */
  readonly onDispatch?: (report: DispatchReport) => void;
  /** Tokens of a step: prompts are computed in chunks of at most so many. */
  readonly maxBatchedTokens: number;
  readonly timeoutMs: number;
}

/** Loads the model as `router-service/main.ts` does. Rejects as loading does. */
export async function openSwitchyard(options: SwitchyardOptions): Promise<Contender> {
  const { model, gpu, maxStreams, maxStreamTokens, timeoutMs } = options;
  const checkpoint = await openCheckpoint(model);
  const { config } = checkpoint;
  // Twice the streams' own blocks: what an earlier round left in the prefix cache is not in the way.
  const kvBlocks = 2 * maxStreams * Math.ceil(maxStreamTokens / BLOCK_SIZE);
  const limits = runnerLimits(
    {
      maxNumSeqs: maxStreams,
      maxNumBatchedTokens: options.maxBatchedTokens,
      maxModelLen: maxStreamTokens,
      kvBlocks,
    },
    config,
    gpu?.maxBindingBytes,
  );
  const logger = createLogger("bench", "warn");
  const { weights: weightsSetting, microBatches } = options;
  const settings = routerConfigSchema.parse({ weights: weightsSetting, microBatches });
  const first = planInputOf(checkpoint, settings, gpu);
  const cluster =
    options.shards &&
    createCluster({
      ...first,
      shards: options.shards,
      routerId: "bench",
      modelHash: checkpoint.modelHash,
      wire: settings.wire,
      dispatchTimeoutMs: timeoutMs,
      copyWaitMs: timeoutMs,
      logger,
      onDispatch: options.onDispatch,
    });
  if (cluster !== undefined) placeFirst(cluster, first);
  const runner = await createRunner({ checkpoint, settings, limits, gpu, cluster, logger });
  if (cluster !== undefined) await inTime("the shards", cluster.ready(), timeoutMs);
  const engine = createEngine({
    runner,
    vocabSize: config.vocabSize,
    eosTokenIds: [],
    maxModelLen: limits.maxModelLen,
    maxNumSeqs: limits.maxSequences,
    maxNumBatchedTokens: options.maxBatchedTokens,
    maxQueue: maxStreams,
    requestTimeoutMs: timeoutMs,
    stepTimeoutMs: timeoutMs,
  });
  const shaderF16 = gpu?.shaderF16 ?? false;
  const weights = decideWeights([{ weights: options.weights, shaderF16 }]);
  let numRequests = 0;
  return {
    device: gpu === undefined ? "CPU" : runner.adapter,
    details: `${weights} weights, f32 KV cache, engine in process`,
    async generate(prompts, numTokens) {
      const start = performance.now();
      const times = await Promise.all(
        prompts.map((prompt) => readTimes(engine, `${numRequests++}`, prompt, numTokens)),
      );
      return generationOf(times, start);
    },
    async close() {
      await engine.close();
      runner.close();
      await cluster?.close();
      await checkpoint.close();
    },
  };
}

/** A token, and when it came: milliseconds of performance.now(). */
export interface TimedToken {
  readonly tokenId: number;
  readonly at: number;
}

async function readTimes(
  engine: Engine,
  id: string,
  promptTokenIds: readonly number[],
  maxTokens: number,
): Promise<TimedToken[]> {
  const tokens: TimedToken[] = [];
  const { signal } = new AbortController();
  const sampling = greedy({ maxTokens, ignoreEos: true });
  for await (const event of engine.submit({
    id,
    promptTokenIds,
    sampling,
    task: "bench",
    signal,
  })) {
    if (event.type === "token") tokens.push({ tokenId: event.tokenId, at: performance.now() });
  }
  return tokens;
}

/**
 * The times of streams that ran together: prefill ends when all have their first token, decode when the first has its
 * last. Some decode while others are in prefill; what came then is not counted as decoded.
 */
export function generationOf(
  streams: readonly (readonly TimedToken[])[],
  start: number,
): Generation {
  const prefilled = Math.max(...streams.map((tokens) => tokens[0].at));
  const firstDone = Math.min(...streams.map((tokens) => tokens[tokens.length - 1].at));
  const decodedTokens = streams.flat().filter(({ at }) => at > prefilled && at <= firstDone).length;
  return {
    tokenIds: streams.map((tokens) => tokens.map(({ tokenId }) => tokenId)),
    prefillMs: prefilled - start,
    decodedTokens,
    decodeMs: decodedTokens === 0 ? 0 : firstDone - prefilled,
  };
}
