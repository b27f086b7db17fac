/** What stands between an FFN's projections. */

import type { Activation } from "../model/config.ts";

/** silu(gate) · up: what most families have. */
export const SILU: Activation = { kind: "silu" };

/** The activation of one column's gate and up projections. */
export function activate(activation: Activation, gate: number, up: number): number {
  switch (activation.kind) {
    case "silu":
      return gate * sigmoid(gate) * up;
    case "clampedSwiglu": {
      const { alpha, limit } = activation;
      const g = Math.min(gate, limit);
      const u = Math.max(-limit, Math.min(up, limit));
      return (u + 1) * g * sigmoid(alpha * g);
    }
  }
}

/** 1 / (1 + e^-x). */
export function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}
