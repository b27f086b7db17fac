/** What every RunExperts does, whether the experts are in the process or on shards: one suite for all. */

import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";

import type { ExpertWeights, StoredExpert } from "../../core/expert-device.ts";
import { openCheckpoint, type Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { readExpert } from "../../core/model/checkpoint/weights.ts";
import { plainFloats } from "../../core/packing/mxfp4-matrix.ts";
import { bytesOf, toF32 } from "../../core/tensor.ts";
import type {
  ExpertSums,
  HiddenStates,
  Routing,
  RunExperts,
  StepRouting,
} from "../../router-service/engine/run-experts.ts";
import { TINY_MODEL } from "../../bench/rig/cluster.ts";
import {
  assertClose,
  expectedSums,
  mapTensors,
  testValues,
} from "../../bench/rig/expert-reference.ts";

/** An implementation under test, with all experts of the tiny model in f32. */
export interface RunExpertsUnderTest {
  readonly runExperts: RunExperts;
  /** Puts a batch where the implementation's engine computes; default: on the host. */
  readonly enter?: (rows: Float32Array, routing: Routing, signal: AbortSignal) => EngineStep;
  /** Brings sums to the host; default: they are there. */
  readonly leave?: (sums: ExpertSums) => Promise<Float32Array>;
  close(): void | Promise<void>;
}

/** What an engine hands over. */
export interface EngineStep {
  readonly hiddenStates: HiddenStates;
  readonly routing: StepRouting;
}

/** A batch [numTokens, hiddenSize] of an engine that computes on the CPU. */
export function hostStep(
  rows: Float32Array,
  routing: Routing,
  signal: AbortSignal,
  traceContext?: StepRouting["traceContext"],
): EngineStep {
  const numTokens = routing.ids.length / routing.topK;
  return {
    hiddenStates: { numTokens, hiddenSize: rows.length / numTokens },
    routing: {
      topK: routing.topK,
      read: () => Promise.resolve({ rows, routing }),
      signal,
      traceContext,
    },
  };
}

/** Sums that are on the host. */
export function hostValues(sums: ExpertSums): Promise<Float32Array> {
  assert.equal(sums.kind, "host");
  return Promise.resolve(sums.kind === "host" ? sums.values : new Float32Array());
}

/** Routing [numTokens, topK] with the given experts and weights between 0 and 1. */
export function testRouting(
  numTokens: number,
  topK: number,
  expertOf: (token: number, k: number) => number,
): Routing {
  const ids = Uint32Array.from({ length: numTokens * topK }, (_, i) =>
    expertOf(Math.floor(i / topK), i % topK),
  );
  return { ids, weights: testValues(ids.length, 77).map(Math.abs), topK };
}

/** Registers the suite. */
export function runExpertsContract(
  name: string,
  start: () => Promise<RunExpertsUnderTest>,
  /** Calls may overlap; not those of an engine that encodes one step at a time. */
  overlaps = true,
): void {
  describe(`${name} as RunExperts`, () => {
    let subject: RunExpertsUnderTest;
    let checkpoint: Checkpoint;
    const experts = new Map<number, ExpertWeights[]>();

    before(async () => {
      checkpoint = await openCheckpoint(TINY_MODEL);
      for (const layer of moeLayers(checkpoint.config)) {
        const all: StoredExpert[] = [];
        for (let expert = 0; expert < checkpoint.config.numExperts; expert++) {
          all.push(await readExpert(checkpoint, layer, expert));
        }
        experts.set(layer, all.map(inF32));
      }
      subject = await start();
    });
    after(async () => {
      await subject?.close();
      await checkpoint?.close();
    });

    const run = async (
      layer: number,
      rows: Float32Array,
      routing: Routing,
      signal = new AbortController().signal,
    ) => {
      const step = (subject.enter ?? hostStep)(rows, routing, signal);
      const sums = await subject.runExperts(layer, step.hiddenStates, step.routing);
      return (subject.leave ?? hostValues)(sums);
    };
    const expected = (layer: number, rows: Float32Array, routing: Routing) =>
      expectedSums(checkpoint.config, experts.get(layer) ?? [], rows, routing.ids, routing.weights);
    // Values that f16 has exactly, so that any wire dtype gives the same sums.
    const states = (numTokens: number, seed = 1) =>
      Float32Array.from(
        new Float16Array(testValues(numTokens * checkpoint.config.hiddenSize, seed)),
      );

    for (const numTokens of [1, 2, 7, 33, 100]) {
      it(`sums the experts of ${numTokens} tokens in every layer as the definition does`, async () => {
        for (const layer of moeLayers(checkpoint.config)) {
          const rows = states(numTokens, layer + 1);
          const routing = testRouting(numTokens, 4, (token, k) => (token * 7 + k * 5 + layer) % 12);
          const sums = await run(layer, rows, routing);
          assertClose(sums, expected(layer, rows, routing), 1e-5);
        }
      });
    }

    for (const [what, expertOf] of [
      ["all tokens choose the same experts", (_: number, k: number) => k],
      ["all tokens choose the last experts", (_: number, k: number) => 11 - k],
      ["one token alone is on the first expert", (token: number, k: number) => (token ? 8 : 0) + k],
    ] as const) {
      it(`sums when ${what}`, async () => {
        const rows = states(9);
        const routing = testRouting(9, 4, expertOf);
        assertClose(await run(1, rows, routing), expected(1, rows, routing), 1e-5);
      });
    }

    it("gives the same bits again and again", async () => {
      const rows = states(13);
      const routing = testRouting(13, 4, (token, k) => (token * 5 + k * 3) % 12);
      const first = await run(2, rows, routing);
      for (let round = 0; round < 5; round++) assert.deepEqual(await run(2, rows, routing), first);
    });

    if (overlaps) {
      it("answers calls that overlap each with its own sums", async () => {
        const calls = [1, 5, 2, 8].map((numTokens, index) => ({
          layer: index % 3,
          rows: states(numTokens, index + 20),
          routing: testRouting(numTokens, 4, (token, k) => (token + k * 2 + index) % 12),
        }));
        const sums = await Promise.all(
          calls.map(({ layer, rows, routing }) => run(layer, rows, routing)),
        );
        for (const [index, { layer, rows, routing }] of calls.entries()) {
          assertClose(sums[index], expected(layer, rows, routing), 1e-5);
        }
      });
    }

    it("computes rows beyond the range of f16 as they are", async () => {
      const rows = states(3);
      rows[5] = 70_001.5;
      rows[64 + 7] = -1e6;
      const routing = testRouting(3, 4, (token, k) => (token + k * 3) % 12);
      assertClose(await run(0, rows, routing), expected(0, rows, routing), 1e-5);
    });
  });
}

function inF32(expert: StoredExpert): ExpertWeights {
  return mapTensors(expert, (tensor) => ({
    shape: tensor.shape,
    dtype: "F32",
    bytes: bytesOf(toF32(plainFloats(tensor))),
  }));
}
