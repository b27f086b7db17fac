/** The seam between the engine and the experts: one function type, with a local and a remote implementation. */

import type { Context } from "@opentelemetry/api";

/** Chosen experts of one layer for one batch, on the host. */
export interface Routing {
  /** Logical expert ids [numTokens, topK]. */
  readonly ids: Uint32Array;
  /** Mix weights [numTokens, topK]. */
  readonly weights: Float32Array;
  readonly topK: number;
}

/**
 * Hidden states [numTokens, hiddenSize] f32 after the post-attention norm, rounded to the wire dtype. They stay where
 * the engine computes until `StepRouting.read`; experts on the engine's GPU are made over the buffer that holds them.
 */
export interface HiddenStates {
  readonly numTokens: number;
  readonly hiddenSize: number;
}

/** Routing of one layer that stays where the engine computes until someone reads it. */
export interface StepRouting {
  readonly topK: number;
  /** The step's open pass, where the engine computes on a GPU. */
  readonly pass?: GPUComputePassEncoder;
  /**
   * Brings hidden states and routing to the host in one read-back, starting at once: what the engine encodes after
   * this call runs while the caller waits.
   */
  read(): Promise<{ readonly rows: Float32Array; readonly routing: Routing }>;
  readonly signal: AbortSignal;
  /** Trace context that dispatch spans hang from; absent where the step is not sampled. */
  readonly traceContext?: Context;
}

/** Weighted sums of the routed experts [numTokens, hiddenSize] f32: on the host, or in the GPU buffer for sums that the experts were made over. */
export type ExpertSums =
  | { readonly kind: "gpu" }
  | { readonly kind: "host"; readonly values: Float32Array };

/**
 * Runs the routed experts of one MoE layer.
 * Returns for each token the sum over its top-k of weight · expert(hiddenStates).
 */
export type RunExperts = (
  layer: number,
  hiddenStates: HiddenStates,
  routing: StepRouting,
) => ExpertSums | Promise<ExpertSums>;
