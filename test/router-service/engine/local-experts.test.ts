import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { allIn } from "../../../core/expert-format.ts";
import { allocate, openGpu, STORAGE, UNIFORM, write } from "../../../core/gpu/device.ts";
import { interleaveRouting } from "../../../core/gpu/expert-ffn.ts";
import { COUNTS_BYTES, countsData } from "../../../core/gpu/kernels/counts.ts";
import { openCheckpoint } from "../../../core/model/checkpoint/checkpoint.ts";
import { createLocalDeviceExperts } from "../../../router-service/engine/local-experts.ts";
import { createLocalGpuExperts } from "../../../router-service/engine/gpu/local-gpu-experts.ts";
import { TINY_MODEL } from "../../../bench/rig/cluster.ts";
import { readF32 } from "../../support/gpu-fixture.ts";
import { hostStep, runExpertsContract } from "../../support/run-experts-contract.ts";

const MAX_TOKENS = 512;

runExpertsContract("an expert device in the router", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const device = createCpuExpertDevice(checkpoint.config);
  const runExperts = await createLocalDeviceExperts(device, checkpoint, allIn("f32"));
  await checkpoint.close();
  return { runExperts, close: () => device.close() };
});

runExpertsContract(
  "the engine's own GPU",
  async () => {
    const gpu = await openGpu();
    const checkpoint = await openCheckpoint(TINY_MODEL);
    const { hiddenSize, numExpertsPerToken, numExperts } = checkpoint.config;
    const counts = allocate(gpu, "counts", COUNTS_BYTES, UNIFORM);
    const rows = allocate(gpu, "rows", MAX_TOKENS * hiddenSize * 4, STORAGE);
    const routing = allocate(gpu, "routing", MAX_TOKENS * numExpertsPerToken * 8, STORAGE);
    const sums = allocate(gpu, "sums", MAX_TOKENS * hiddenSize * 4, STORAGE);
    const maxPairs = MAX_TOKENS * numExpertsPerToken;
    const buffers = { counts, rows, routing: () => routing, sums, maxPairs };
    const runExperts = await createLocalGpuExperts(gpu, checkpoint, allIn("f32"), buffers);
    await checkpoint.close();
    let numTokens = 0;
    let encoder: GPUCommandEncoder;
    let pass: GPUComputePassEncoder;
    return {
      runExperts,
      enter: (values, chosen, signal) => {
        const onHost = hostStep(values, chosen, signal);
        ({ numTokens } = onHost.hiddenStates);
        const words = new Uint32Array(chosen.ids.length * 2);
        interleaveRouting(chosen.ids, chosen.weights, words);
        const sizes = { tokens: numTokens, samples: 0, topK: chosen.topK, numSlots: numExperts };
        write(gpu, counts, 0, countsData(sizes));
        write(gpu, rows, 0, values);
        write(gpu, routing, 0, words);
        encoder = gpu.device.createCommandEncoder();
        pass = encoder.beginComputePass();
        return { ...onHost, routing: { ...onHost.routing, pass } };
      },
      leave: async (result) => {
        pass.end();
        gpu.device.queue.submit([encoder.finish()]);
        if (result.kind !== "gpu") throw new TypeError("expected sums on the GPU");
        return readF32(gpu, sums, numTokens * hiddenSize);
      },
      close: () => gpu.close(),
    };
  },
  false,
);
