import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import { expertDeviceContract } from "../../support/expert-device-contract.ts";

expertDeviceContract("the CPU", createCpuExpertDevice);

describe("the CPU's expert device", () => {
  it("refuses slots beyond its memory limit with bytes and limit", () => {
    const expertBytes = 3 * 64 * 40 * 4;
    const sizes = { hiddenSize: 64, expertIntermediateSize: 40 };
    const device = createCpuExpertDevice({ ...sizes, memoryBytes: 5 * expertBytes }, "f32");
    device.allocate(0, 3);
    assert.throws(
      () => device.allocate(1, 3),
      (error) =>
        error instanceof OutOfDeviceMemoryError &&
        error.message.includes(String(3 * expertBytes)) &&
        error.message.includes(String(2 * expertBytes)),
    );
    device.allocate(1, 2);
    assert.equal(device.residentBytes(), 5 * expertBytes);
  });

  it("rejects runs once it is closed", async () => {
    const sizes = { hiddenSize: 4, expertIntermediateSize: 4 };
    const device = createCpuExpertDevice(sizes, "f32");
    device.close();
    await assert.rejects(
      device.run(0, new Float32Array(4), new Uint32Array(1), new Float32Array(1)),
      /closed/,
    );
  });
});
