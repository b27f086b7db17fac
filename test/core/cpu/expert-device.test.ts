import assert from "node:assert/strict";
import { describe, it } from "node:test";

import { SILU } from "../../../core/cpu/activation.ts";
import { createCpuExpertDevice } from "../../../core/cpu/expert-device.ts";
import { NO_SLOT, OutOfDeviceMemoryError } from "../../../core/expert-device.ts";
import { EXPERT_FORMATS } from "../../../core/expert-format.ts";
import { expertDeviceContract } from "../../support/expert-device-contract.ts";
import { expertFormatContract } from "../../support/expert-format-contract.ts";
import { rearrangeContract } from "../../support/rearrange-contract.ts";

expertDeviceContract("the CPU", (sizes) => createCpuExpertDevice(sizes));
rearrangeContract("the CPU", (sizes) => createCpuExpertDevice(sizes));
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

  it("refuses to grow a layer beyond its memory limit, and keeps it as it is", async () => {
    const expertBytes = 3 * 64 * 40 * 4;
    const sizes = { ...PLAIN, hiddenSize: 64, expertIntermediateSize: 40 };
    const device = createCpuExpertDevice({ ...sizes, memoryBytes: 5 * expertBytes });
    device.allocate(0, ["f32", "f32", "f32"]);
    device.allocate(1, ["f32"]);
    const grow = (to: number) =>
      device.rearrange(
        1,
        Array.from({ length: to }, () => "f32" as const),
        Array.from({ length: to }, (_, slot) => (slot === 0 ? 0 : NO_SLOT)),
      );
    await assert.rejects(grow(3), (error) => {
      assert.ok(error instanceof OutOfDeviceMemoryError);
      assert.match(error.message, new RegExp(`${3 * expertBytes} .* at most ${2 * expertBytes} `));
      return true;
    });
    assert.equal(device.residentBytes(), 4 * expertBytes);
    (await grow(2)).commit();
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
