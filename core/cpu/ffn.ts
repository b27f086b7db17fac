/** Gated FFNs without biases in plain loops: dense layers and shared experts. */

import type { Activation } from "../model/config.ts";
import { activate, SILU } from "./activation.ts";
import { linear } from "./operations.ts";

/** activation(x · gateᵀ, x · upᵀ), gate above up in `weights` [2n, k]: [rows, n]. */
export function gateUp(
  x: Float32Array,
  weights: Float32Array,
  k: number,
  activation: Activation = SILU,
): Float32Array {
  const both = linear(x, weights, k);
  const n = weights.length / k / 2;
  const out = new Float32Array(both.length / 2);
  for (let i = 0; i < out.length; i++) {
    const row = Math.floor(i / n) * 2 * n;
    const column = i % n;
    out[i] = activate(activation, both[row + column], both[row + n + column]);
  }
  return out;
}

/** The FFN down(activation(gate·x, up·x)), gate above up in `gateUpWeights` [2n, k], `down` [k, n]: [rows, k]. */
export function ffn(
  x: Float32Array,
  gateUpWeights: Float32Array,
  down: Float32Array,
  k: number,
  activation: Activation = SILU,
): Float32Array {
  return linear(gateUp(x, gateUpWeights, k, activation), down, down.length / k);
}
