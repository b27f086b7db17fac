/** What the runners do not compute yet, refused by name. */

import type { HeadsAttention, ModelConfig } from "../../core/model/config.ts";

/** The runner does not compute what the model asks for. */
export class UnsupportedModelError extends Error {
  override readonly name = "UnsupportedModelError";
}

/** Attention per head of a model. Throws UnsupportedModelError for latent attention. */
export function headsOf(config: ModelConfig): HeadsAttention {
  if (config.attention.kind === "heads") return config.attention;
  throw new UnsupportedModelError(`${config.modelType}: latent attention is not supported`);
}
