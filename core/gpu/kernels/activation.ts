/** What stands between an FFN's projections, as kernels compute it. */

import type { Activation } from "../../model/config.ts";

/** A WGSL number with a decimal point. */
function float(value: number): string {
  return Number.isInteger(value) ? `${value}.0` : String(value);
}

/** WGSL of `activate(g, u)` over vectors of gate and up projections of this type. */
export function activationWgsl(activation: Activation, type: "vec2<f32>" | "f32"): string {
  const head = `fn activate(g: ${type}, u: ${type}) -> ${type}`;
  switch (activation.kind) {
    case "silu":
      return `${head} { return g / (1.0 + exp(-g)) * u; }`;
    case "clampedSwiglu": {
      const limit = float(activation.limit);
      return /* wgsl */ `
${head} {
  let a = min(g, ${type}(${limit}));
  let b = clamp(u, ${type}(-${limit}), ${type}(${limit}));
  return (b + 1.0) * (a / (1.0 + exp(${float(-activation.alpha)} * a)));
}`;
    }
  }
}
