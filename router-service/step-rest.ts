/** What steps take beside their MoE layers: attention, gates, sampling, and whatever else no expert is waited for in. */

import { middle } from "../core/middle.ts";
import type { StepReport } from "./engine/observer.ts";

/** Steps of each kind whose times are kept, the newest. */
const MAX_STEPS = 1024;

/** Layers of steps under way that are kept at most; an engine whose steps all fail has no more. */
const MAX_LAYERS = 8192;

/** Milliseconds beside the MoE layers, at the median; undefined where no step of the kind was seen. */
export interface RestMs {
  /** Of steps of decodes alone. */
  readonly decode: number | undefined;
  /** Of steps that compute prompts, whatever else is in them. */
  readonly prefill: number | undefined;
}

/** Times of steps as they go by. */
export interface StepRest {
  /** An MoE layer was computed just now and took so long, milliseconds; several may overlap. */
  onLayer(durationMs: number, now?: number): void;
  /** A step has ended; one without any MoE layer does not count. */
  onStep(step: Pick<StepReport, "startedAt" | "finishedAt" | "sequences">): void;
  restMs(): RestMs;
}

/** A part of time, milliseconds of performance.now(). */
interface Span {
  readonly from: number;
  readonly to: number;
}

/** Starts with no step seen. */
export function createStepRest(): StepRest {
  const rests = { decode: [] as number[], prefill: [] as number[] };
  let layers: Span[] = [];
  return {
    onLayer: (durationMs, now = performance.now()) => {
      if (layers.length === MAX_LAYERS) layers = [];
      layers.push({ from: now - durationMs, to: now });
    },
    onStep: ({ startedAt, finishedAt, sequences }) => {
      const inStep = layers.filter(({ from, to }) => to > startedAt && from < finishedAt);
      // A step may begin before the one ahead of it has ended.
      layers = layers.filter(({ to }) => to > finishedAt);
      if (inStep.length === 0) return;
      const kind = sequences.every(({ phase }) => phase === "decode") ? "decode" : "prefill";
      const rest = finishedAt - startedAt - covered(inStep, startedAt, finishedAt);
      rests[kind] = [...rests[kind].slice(1 - MAX_STEPS), rest];
    },
    restMs: () => ({ decode: middle(rests.decode), prefill: middle(rests.prefill) }),
  };
}

/** Milliseconds between `begin` and `end` that lie in some span: micro-batches' layers overlap. */
function covered(spans: readonly Span[], begin: number, end: number): number {
  let sum = 0;
  let until = begin;
  for (const { from, to } of spans.toSorted((a, b) => a.from - b.from)) {
    const last = Math.min(to, end);
    sum += Math.max(0, last - Math.max(from, until));
    until = Math.max(until, last);
  }
  return sum;
}
