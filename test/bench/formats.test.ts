import assert from "node:assert/strict";
import { after, before, describe, it, test } from "node:test";

import {
  FORMAT_SETTINGS,
  type FormatBench,
  outputErrors,
  scoreSetting,
} from "../../bench/formats.ts";
import { ErrorSum } from "../../bench/formats/layer-errors.ts";
import { domainWindows, readReference } from "../../bench/held-out/scorer.ts";
import { perplexity } from "../../bench/held-out/windows.ts";
import { type Checkpoint, openCheckpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { openGpu } from "../../core/gpu/device.ts";
import { moeLayers } from "../../core/model/config.ts";
import { DEMO_MODEL } from "../../bench/rig/cluster.ts";

describe("the demo model on held-out text", () => {
  let checkpoint: Checkpoint;
  let bench: FormatBench;
  let window: number[];
  let published: number;
  before(async () => {
    checkpoint = await openCheckpoint(DEMO_MODEL);
    const reference = await readReference(DEMO_MODEL);
    [window] = await domainWindows(DEMO_MODEL, reference, "books");
    published = Math.exp(reference.domains["books"].window_nll[0]);
    bench = { checkpoint, windowSize: window.length, open: () => openGpu() };
  });
  after(() => checkpoint.close());

  it("stays within the perplexity that each format may cost", async () => {
    const limits = { "--weights f16": 0.001, "--experts-bits 8": 0.005, "--experts-bits 4": 0.03 };
    const perplexityOf = async (name: string) => {
      const setting = FORMAT_SETTINGS.find((one) => one.name === name)!;
      return perplexity(await scoreSetting(bench, setting, [window]));
    };
    const exact = await perplexityOf("--weights f32");
    assert.ok(Math.abs(exact / published - 1) < 1e-3, String(exact));
    for (const [name, limit] of Object.entries(limits)) {
      const change = Math.abs((await perplexityOf(name)) / exact - 1);
      assert.ok(change <= limit, `${name}: ${change}`);
      if (name !== "--weights f16") assert.ok(change > 1e-5, `${name} changes nothing`);
    }
  });

  it("has sums over experts in each layer that are as far off as the format's weights", async () => {
    const formats = ["int8", "int4-g32"] as const;
    const errors = await outputErrors(bench, formats, [window.slice(0, 40)]);
    for (const layer of moeLayers(checkpoint.config)) {
      const int8 = errors.of(layer, "int8").relative;
      assert.ok(int8 > 0.003 && int8 < 0.012, `layer ${layer} int8: ${int8}`);
      const int4 = errors.of(layer, "int4-g32").relative;
      assert.ok(int4 > 0.05 && int4 < 0.14, `layer ${layer} int4: ${int4}`);
    }
  });
});

test("a relative error is that of all that was added together", () => {
  const sum = new ErrorSum();
  assert.equal(sum.relative, 0);
  sum.add([3, 0], [3, 4]);
  sum.add([0, 4], [0, 4]);
  assert.equal(sum.relative, Math.sqrt(16 / 25));
});
