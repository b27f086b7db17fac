/** Two lanes at once: one computes while the other waits; where one fails, so does the other. */

import type { LaneOrder } from "./gpu/gpu-lane.ts";

/** One lane's part of a step. */
export type LaneRun<T> = (signal: AbortSignal, order: LaneOrder) => Promise<T>;

/**
 * Runs both and settles when both have, so that their buffers are free again.
 * With `inOrder` the second enters no layer before the first has passed it. Rejects as the first that failed.
 */
export async function runInTurns<T>(
  signal: AbortSignal,
  inOrder: boolean,
  [first, second]: readonly [LaneRun<T>, LaneRun<T>],
): Promise<[T, T]> {
  const failed = new AbortController();
  const either = AbortSignal.any([signal, failed.signal]);
  const passed = new Map<number, PromiseWithResolvers<void>>();
  const turn = (layer: number) => {
    const known = passed.get(layer) ?? Promise.withResolvers<void>();
    passed.set(layer, known);
    return known;
  };
  let firstEnded = false;
  let reason: unknown;
  const guard = async (run: () => Promise<T>): Promise<T> => {
    try {
      return await run();
    } catch (error) {
      if (!failed.signal.aborted) {
        reason = error;
        failed.abort(new DOMException("the step's other micro-batch failed", "AbortError"));
      }
      throw error;
    }
  };
  const ahead = guard(async () => {
    try {
      return await first(either, { after: (layer) => turn(layer).resolve() });
    } finally {
      firstEnded = true;
      for (const { resolve } of passed.values()) resolve();
    }
  });
  const behind = guard(() =>
    second(either, {
      before: async (layer) => {
        if (!inOrder) return;
        if (!firstEnded) await turn(layer).promise;
        either.throwIfAborted();
      },
    }),
  );
  const [a, b] = await Promise.allSettled([ahead, behind]);
  if (a.status === "rejected" || b.status === "rejected") throw reason;
  return [a.value, b.value];
}
