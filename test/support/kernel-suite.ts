/** Every kernel against the plain loops, on ragged sizes; run per adapter. */

import assert from "node:assert/strict";
import { after, describe, test } from "node:test";

import { openGpu } from "../../core/gpu/device.ts";
import { matrixKernelCases } from "./matrix-kernel-cases.ts";
import { rowKernelCases } from "./row-kernel-cases.ts";

/**
 * On which shapes kernels run: all, or for each kernel few that are small and have its features between them. What an
 * adapter adds is its compiler, its subgroups and its formats, and some take seconds to compile a kernel for one shape.
 */
export type KernelShapes = "all" | "few";

/** Declares the suite for the adapter that the process environment selects. */
export async function kernelSuite(
  name: string,
  adapterPattern: RegExp,
  shapes: KernelShapes,
): Promise<void> {
  const gpu = await openGpu();
  void gpu.lost.then((reason) => {
    throw new Error(reason);
  });

  describe(`kernels on ${name}`, () => {
    after(() => gpu.close());

    test(`the adapter is ${name}`, () => {
      assert.match(gpu.adapter, adapterPattern);
    });

    matrixKernelCases(gpu, shapes);
    rowKernelCases(gpu, shapes);
  });
}
