import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { openCheckpoint } from "../../../core/model/checkpoint.ts";
import { moeLayers } from "../../../core/model/config.ts";
import { readExpert } from "../../../core/model/weights.ts";
import { TINY_MODEL } from "../../support/cluster.ts";
import {
  runExpertsContract,
  type RunExpertsUnderTest,
} from "../../support/run-experts-contract.ts";
import { connectTestCluster, startTestShard } from "../../support/shards.ts";

runExpertsContract("an expert device in the process", async (): Promise<RunExpertsUnderTest> => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const device = createCpuExpertDevice(checkpoint.config, "f32");
  for (const layer of moeLayers(checkpoint.config)) {
    device.allocate(layer, checkpoint.config.numExperts);
    for (let expert = 0; expert < checkpoint.config.numExperts; expert++) {
      device.load(layer, expert, await readExpert(checkpoint, layer, expert));
    }
  }
  await checkpoint.close();
  return {
    runExperts: async (layer, _, routing) => {
      const { rows, routing: chosen } = await routing.read();
      const values = await device.run(layer, rows, chosen.ids, chosen.weights);
      return { kind: "host", values };
    },
    close: () => device.close(),
  };
});

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
