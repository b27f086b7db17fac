/** Routers without an engine: a cluster and its control plane, in the test's own process. */

import assert from "node:assert/strict";

import { testValues } from "../../bench/rig/expert-reference.ts";
import { waitFor } from "../../bench/rig/wait-for.ts";
import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { ranksOf } from "../../core/placement/placement.ts";
import type { Logger } from "../../core/platform/log.ts";
import { createStatistics } from "../../core/statistics/store.ts";
import type { Cluster } from "../../router-service/cluster/cluster.ts";
import { placementView } from "../../router-service/api/placement.ts";
import type { Serving } from "../../router-service/api/serving.ts";
import { startControlPlane, type ControlPlane } from "../../router-service/control-plane.ts";
import { localRankOptions } from "../../router-service/local-rank.ts";
import { hostStep, testRouting } from "./run-experts-contract.ts";
import { connectTestCluster, silentLogger } from "./shards.ts";

/** A router of the tiny model. */
export interface TestRouter {
  readonly cluster: Cluster;
  readonly plane: ControlPlane;
  close(): Promise<void>;
}

/** How a test's router differs from the usual one, which finds its shards and plans only where it must. */
export interface TestRouterOptions {
  readonly redisUrl?: string;
  readonly shards?: readonly string[];
  readonly minShards?: number;
  readonly minCopies?: number;
  /** Seconds; default: 10. */
  readonly shardsTimeout?: number;
  /** What routed experts may take of its own device now, bytes; absent: it has none for them. */
  readonly localBytes?: () => number;
  readonly logger?: Logger;
}

/** Starts a router. */
export async function startTestRouter(
  checkpoint: Checkpoint,
  routerId: string,
  options: TestRouterOptions,
): Promise<TestRouter> {
  const { config, modelHash, overlay, storedExperts } = checkpoint;
  const { redisUrl, shards = [], minShards = 1, minCopies = 1, localBytes } = options;
  const shape = {
    modelName: "tiny",
    layers: moeLayers(config),
    numExperts: config.numExperts,
    topK: config.numExpertsPerToken,
  };
  const statistics = createStatistics({ ...shape, modelHash, ...(redisUrl && { redisUrl }) });
  const cluster = await connectTestCluster(shards, {
    routerId,
    plansFirst: false,
    local:
      localBytes &&
      localRankOptions({
        checkpoint,
        settings: { tune: "never" },
        memory: { isOffered: true, bytes: localBytes },
        gpu: undefined,
        logger: silentLogger,
      }),
  });
  const plane = startControlPlane({
    settings: {
      redisUrl,
      discover: shards.length === 0,
      minShards,
      shards: [...shards],
      shardsTimeout: options.shardsTimeout ?? 10,
      planInterval: 0,
      minCopies,
      placementPolicy: "auto",
      wire: "f32",
      host: "127.0.0.1",
    },
    localBytes: localBytes ?? (() => 0),
    checkpoint,
    shape,
    statistics,
    queued: () => [],
    cluster,
    routerId,
    first: { config, weights: "f32", shaderF16: false, experts: "auto", storedExperts, overlay },
    httpPort: 1,
    grpcPort: 2,
    logger: options.logger ?? silentLogger,
  });
  return {
    cluster,
    plane,
    close: async () => {
      await plane.close();
      await cluster.close();
      await statistics.close();
    },
  };
}

/** Epoch that a router works by; 0 before the first. */
export const epochOf = ({ cluster }: TestRouter) => cluster.current()?.placement.epoch ?? 0;
/** Ranks that hold something in it, ascending. */
export const holders = ({ cluster }: TestRouter) => {
  const placement = cluster.current()?.placement;
  return placement === undefined ? [] : ranksOf(placement);
};
/** Whether it plans. */
export const isLeading = ({ plane }: TestRouter) => plane.planner.state().leading;

/** The parts of GET /v1/placement that tests of losses read. */
export interface LossView {
  readonly unplaceable: string | null;
  readonly lost: { readonly experts: number; readonly experts_without_room: number } | null;
  readonly predicted_step_seconds: number | null;
  readonly shards: readonly { readonly rank: number; readonly state: string }[];
}

/** GET /v1/placement, without a door. */
export async function lossView({ plane }: TestRouter): Promise<LossView> {
  const serving: Pick<Serving, "placement"> = { placement: () => plane };
  return (await placementView(serving)) as LossView;
}

/** Sums of the routed experts of layer 0 for three fixed rows. */
export async function runRows({ cluster }: TestRouter): Promise<Float32Array> {
  const routing = testRouting(3, 4, (token, k) => (token + k * 3) % 12);
  const step = hostStep(testValues(3 * 64, 1), routing, new AbortController().signal);
  const sums = await cluster.runExperts(0, step.hiddenStates, step.routing);
  assert.ok(sums.kind === "host");
  return sums.values;
}

/** Runs the rows again and again until a run is refused, and returns why; throws where none is in time. */
export function refusalOf(router: TestRouter): Promise<string> {
  const run = () =>
    runRows(router).then(
      () => undefined,
      (error: Error) => error.message,
    );
  return waitFor("a refusal", run, 20_000);
}

/** Fails unless the sums are the same but for the order in which shards' parts are added. */
export async function assertComputes(router: TestRouter, expected: Float32Array): Promise<void> {
  const sums = await runRows(router);
  assert.equal(sums.length, expected.length);
  for (const [i, sum] of sums.entries()) {
    assert.ok(Math.abs(sum - expected[i]) < 1e-5, `${i}: ${sum}, expected ${expected[i]}`);
  }
}

/** Waits until all routers work by one epoch that places experts on just these ranks. */
export async function settled(
  routers: readonly TestRouter[],
  ranks: readonly number[],
): Promise<number> {
  await waitFor(
    `experts on ${ranks.join()}`,
    () => {
      const epochs = new Set(routers.map(epochOf));
      return epochs.size === 1 && routers.every((one) => holders(one).join() === ranks.join());
    },
    15_000,
  );
  return epochOf(routers[0]);
}
