import { runExpertsContract } from "../../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard } from "../../../support/shards.ts";

for (const { numShards, wire, device } of [
  { numShards: 1, wire: "f32", device: "cpu" },
  { numShards: 2, wire: "f32", device: "cpu" },
  { numShards: 2, wire: "f16", device: "cpu" },
  { numShards: 3, wire: "f16", device: "cpu" },
  { numShards: 2, wire: "f32", device: "webgpu" },
  { numShards: 3, wire: "f16", device: "webgpu" },
] as const) {
  runExpertsContract(`a cluster of ${numShards} ${device} shards with wire ${wire}`, async () => {
    const shards = await Promise.all(
      Array.from({ length: numShards }, (_, rank) => startTestShard({ rank, device })),
    );
    const addresses = shards.map(({ address }) => address);
    const cluster = await connectTestCluster(addresses, { wire });
    await cluster.ready();
    return {
      runExperts: cluster.runExperts,
      close: async () => {
        await cluster.close();
        await Promise.all(shards.map((shard) => shard.close()));
      },
    };
  });
}
