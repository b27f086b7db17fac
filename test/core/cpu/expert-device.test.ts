import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../../core/cpu/activation.ts";
import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import { EXPERT_FORMATS } from "../../../core/expert-format.ts";
import { expertDeviceContract } from "../../support/expert-device-contract.ts";
import { expertFormatContract } from "../../support/expert-format-contract.ts";

expertDeviceContract("the CPU", (sizes) => createCpuExpertDevice(sizes));
expertFormatContract("the CPU", (sizes) => createCpuExpertDevice(sizes), EXPERT_FORMATS);

const PLAIN = { activation: SILU, expertBias: false };

describe("the CPU's expert device", () => {
  it("refuses slots beyond its memory limit with bytes and limit", () => {
    const expertBytes = 3 * 64 * 40 * 4;
    const sizes = { ...PLAIN, hiddenSize: 64, expertIntermediateSize: 40 };
    const device = createCpuExpertDevice({ ...sizes, memoryBytes: 5 * expertBytes });
    device.allocate(0, ["f32", "f32", "f32"]);
    assert.throws(
      () => device.allocate(1, ["f32", "f32", "f32"]),
      (error) =>
        error instanceof OutOfDeviceMemoryError &&
        error.message.includes(String(3 * expertBytes)) &&
        error.message.includes(String(2 * expertBytes)),
    );
    device.allocate(1, ["f32", "f32"]);
    assert.equal(device.residentBytes(), 5 * expertBytes);
  });

  it("rejects runs once it is closed", async () => {
    const sizes = { ...PLAIN, hiddenSize: 8, expertIntermediateSize: 8 };
    const device = createCpuExpertDevice(sizes);
    device.close();
    await assert.rejects(
      device.run(0, new Float32Array(8), new Uint32Array(1), new Float32Array(1)),
      /closed/,
    );
  });
});
