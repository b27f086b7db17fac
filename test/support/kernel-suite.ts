/** Every kernel against the plain loops, on ragged sizes; run once per adapter. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { openGpu } from "../../core/gpu/device.ts";
import { matrixKernelCases } from "./matrix-kernel-cases.ts";
import { rowKernelCases } from "./row-kernel-cases.ts";

/** Declares the suite for the adapter that the process environment selects. */
export async function kernelSuite(name: string, adapterPattern: RegExp): Promise<void> {
  const gpu = await openGpu();
  void gpu.lost.then((reason) => {
    throw new Error(reason);
  });

  describe(`kernels on ${name}`, () => {
    after(() => gpu.close());

    test(`the adapter is ${name}`, () => {
      assert.match(gpu.adapter, adapterPattern);
    });

    matrixKernelCases(gpu);
    rowKernelCases(gpu);
  });
}
