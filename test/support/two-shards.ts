/** Runners whose experts are on two shards. */

import type { RunExperts } from "../../router-service/engine/run-experts.ts";
import type { RunnerFactory } from "./golden-suite.ts";
import { connectTestCluster, startTestShard, type TestShardOptions } from "./shards.ts";

/**
 * Makes runners that reach the experts of any checkpoint on two shards of their own, in this process and over gRPC;
 * the shards close with the runner.
 */
export function onTwoShards(
  device: TestShardOptions["device"],
  create: (runExperts: RunExperts, ...of: Parameters<RunnerFactory>) => ReturnType<RunnerFactory>,
): RunnerFactory {
  return async (checkpoint, limits) => {
    const { dir: model } = checkpoint;
    const shards = await Promise.all(
      [0, 1].map((rank) => startTestShard({ model, rank, device, weights: "f32" })),
    );
    const cluster = await connectTestCluster(
      shards.map(({ address }) => address),
      { model },
    );
    await cluster.ready();
    const runner = await create(cluster.runExperts, checkpoint, limits);
    return {
      forward: (batch, context) => runner.forward(batch, context),
      close: async () => {
        await runner.close();
        await cluster.close();
        await Promise.all(shards.map((shard) => shard.close()));
      },
    };
  };
}
