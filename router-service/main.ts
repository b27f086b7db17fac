/** The router as a process: builds and wires everything. */

import { basename, resolve } from "node:path";

import { openDevice } from "../core/gpu/open-device.ts";
import { openCheckpoint } from "../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../core/model/config.ts";
import { loadTokenizer } from "../core/model/tokenizer/tokenizer.ts";
import { loadConfig } from "../core/platform/config.ts";
import { MAX_MESSAGE_BYTES } from "../core/platform/grpc.ts";
import { announceReady, exitWithParent, startLifecycle } from "../core/platform/lifecycle.ts";
import { createLogger } from "../core/platform/log.ts";
import { startTelemetry } from "../core/platform/telemetry.ts";
import { createStatistics } from "../core/statistics/store.ts";
import { createApi } from "./api/api.ts";
import { createRouterMetrics } from "./api/metrics.ts";
import { createRequestTracing } from "./api/request-tracing.ts";
import { createCluster } from "./cluster/cluster.ts";
import { planInputOf } from "./cluster/planning/first-placement.ts";
import { type ControlPlane, createRouterId, startControlPlane } from "./control-plane.ts";
import { routerAbout, routerConfigSchema } from "./config.ts";
import { DeferredEngine } from "./engine/deferred-engine.ts";
import { createEngine } from "./engine/engine.ts";
import { mergeObservers } from "./engine/merge-observers.ts";
import type { ModelRunner } from "./engine/model-runner.ts";
import { STEP_TIMEOUT_MS } from "./engine/step-failure.ts";
import { checkMessageSize, runnerLimits } from "./engine/runner-limits.ts";
import { createQueueWatch, type PendingRequest } from "./engine/queue-watch.ts";
import { createLocalMemory } from "./local-memory.ts";
import { localRankOptions } from "./local-rank.ts";
import { startRoutingRecorder } from "./routing-recorder.ts";
import { createRunner } from "./runner.ts";

const settings = loadConfig(routerConfigSchema, routerAbout);
const logger = createLogger("router", settings.logLevel);
const lifecycle = startLifecycle(logger);
exitWithParent(lifecycle);

const telemetry = await startTelemetry("switchyard-router", logger);
lifecycle.onStop("telemetry", () => telemetry.shutdown());

const checkpoint = await openCheckpoint(settings.model);
lifecycle.onStop("checkpoint", () => checkpoint.close());
const { config, generation, modelHash, unexpectedTensors } = checkpoint;
if (unexpectedTensors.length > 0) {
  const [first] = unexpectedTensors;
  logger.warn(
    { count: unexpectedTensors.length, first },
    "the checkpoint has tensors that the model does not use",
  );
}
const tokenizer = await loadTokenizer(settings.model, config);
const modelName = settings.servedModelName ?? basename(resolve(settings.model));
const layers = moeLayers(config);

const gpu = await openDevice(settings.device, settings.adapter, logger);
if (gpu !== undefined) {
  lifecycle.onStop("device", () => gpu.close());
  void gpu.lost.then((reason) => lifecycle.stop(reason, 1));
}
const limits = runnerLimits(settings, config, gpu?.maxBindingBytes);
const isRemote = settings.discover || settings.shards.length > 0;
if (isRemote) checkMessageSize(limits, config, MAX_MESSAGE_BYTES);
const memory = createLocalMemory({ checkpoint, settings, limits, gpu, isRemote, logger });
if (limits.contextLimitedBy !== undefined) {
  const { maxModelLen, contextLimitedBy } = limits;
  logger.warn(
    { maxModelLen, maxPositions: config.maxPositions, by: contextLimitedBy },
    `context limited to ${maxModelLen} of ${config.maxPositions} positions by ${contextLimitedBy}`,
  );
}

const metrics = createRouterMetrics({
  modelName,
  maxModelLen: limits.maxModelLen,
  numExperts: config.numExperts,
  state: () => engine.state(),
  planner: () => controlPlane?.planner.state(),
});
const shape = {
  modelName,
  layers,
  numExperts: config.numExperts,
  topK: config.numExpertsPerToken,
};
const queueWatch = createQueueWatch({
  maxSequences: settings.maxNumSeqs,
  maxTokensPerStep: settings.maxNumBatchedTokens,
});
let pending: () => PendingRequest[] = () => [];
const queued = () => queueWatch.upcoming(pending());
const statistics = createStatistics({
  redisUrl: settings.redisUrl,
  modelHash,
  ...shape,
  log: logger,
  queued,
  onWindow: (window) => metrics.onWindow(window),
  onFlush: (outcome) => metrics.onFlush(outcome),
  onDropped: (tokens) => metrics.onDropped(tokens),
});
lifecycle.onStop("statistics", () => statistics.close());
const recorder =
  settings.recordRouting === undefined
    ? undefined
    : await startRoutingRecorder({
        file: settings.recordRouting,
        shape,
        maxTokens: settings.recordTokens,
        log: logger,
      });
lifecycle.onStop("recording", async () => recorder?.close());

const routerId = createRouterId();
const first = planInputOf(checkpoint, settings, gpu);
const cluster = isRemote
  ? createCluster({
      ...first,
      shards: settings.shards,
      local: localRankOptions({ checkpoint, settings, memory, gpu, logger }),
      routerId,
      modelHash,
      wire: settings.wire,
      splitByShares: settings.placementPolicy !== "auto",
      dispatchTimeoutMs: settings.dispatchTimeout * 1000,
      // Beyond it, no request is left that waits.
      copyWaitMs: settings.requestTimeout * 1000,
      logger,
      ...metrics.recovery,
      onLayer: (seconds) => {
        metrics.recovery.onLayer?.(seconds);
        recorder?.onLayer(seconds);
      },
      onDispatch: (report) => metrics.onDispatch(report),
    })
  : undefined;
if (cluster !== undefined) {
  cluster.onChange((change) => metrics.onClusterChange(change));
  lifecycle.onStop("cluster", () => cluster.close());
}

const engine = new DeferredEngine(limits.maxModelLen);
const api = createApi({
  engine,
  tokenizer,
  config,
  generation,
  servedModelName: modelName,
  apiKey: settings.apiKey,
  unavailableReason: () => cluster?.unavailableReason() ?? engine.unavailableReason(),
  metricsText: () => metrics.text(),
  onPrompt: (report) => metrics.onPrompt(report),
  numShards: () => cluster?.members().length ?? 0,
  ...(isRemote && { placement: () => controlPlane }),
  log: logger,
});
let controlPlane: ControlPlane | undefined;
let runner: ModelRunner | undefined;
lifecycle.onStop("doors and engine", async () => {
  await api.close();
  await engine.close();
  runner?.close();
});
// The doors open first: until every expert has a living copy they say so, by /health and 503.
const httpPort = await api.listenHttp(settings.host, settings.httpPort);
const grpcPort = await api.listenGrpc(settings.host, settings.grpcPort);
logger.info({ httpPort, grpcPort }, "listening");

if (cluster !== undefined) {
  const started = startControlPlane({
    settings,
    localBytes: () => memory.bytes(),
    checkpoint,
    shape,
    statistics,
    queued,
    cluster,
    routerId,
    first,
    httpPort,
    grpcPort,
    logger,
  });
  controlPlane = started;
  lifecycle.onStop("control plane", () => started.close());
}

runner = await createRunner({
  checkpoint,
  settings,
  limits,
  gpu,
  cluster,
  onWeights: (weights) => memory.decided(weights),
  logger,
}).catch((error) => {
  // A stop closes what a load reads from: what it then ran into is not the reason.
  throw lifecycle.signal.aborted ? lifecycle.signal.reason : error;
});
const loop = createEngine({
  runner,
  vocabSize: config.vocabSize,
  eosTokenIds: generation.eosTokenIds,
  maxModelLen: limits.maxModelLen,
  maxNumSeqs: settings.maxNumSeqs,
  maxNumBatchedTokens: settings.maxNumBatchedTokens,
  maxQueue: settings.maxQueue,
  requestTimeoutMs: settings.requestTimeout * 1000,
  // A CPU is slow but does not hang.
  stepTimeoutMs: gpu ? STEP_TIMEOUT_MS : Infinity,
  lastAwayAt: cluster && (() => cluster.lastBusyAt()),
  observer: mergeObservers(
    logger,
    statistics.observer,
    recorder?.observer ?? {},
    metrics.observer,
    queueWatch.observer,
    createRequestTracing(),
  ),
  available: () => cluster?.unavailableReason(),
  hopeless: () => cluster?.hopelessReason(),
  waitsFor: () => cluster?.missingReason(),
});
void loop.lost.then((reason) => lifecycle.stop(reason, 1));
pending = () => loop.pending();
engine.resolve(loop);

await cluster?.ready();
logger.info(
  {
    model: modelName,
    modelHash,
    httpPort,
    grpcPort,
    adapter: runner.adapter,
    maxModelLen: limits.maxModelLen,
    kvBlocks: runner.numBlocks,
  },
  "ready",
);
announceReady({ httpPort, grpcPort });
