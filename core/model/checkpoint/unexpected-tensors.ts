/** Tensors of a checkpoint that its config does not ask for: which of them can be left out, and which can not. */

import { CheckpointError } from "./checkpoint-error.ts";
import type { ModelConfig } from "../config.ts";

/** What every family computes by itself, or what only a narrower arithmetic than the engine's needs. */
const HARMLESS = [
  /\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$/u,
  /[._](weight|input|activation|output|q|k|v|kv)_scale(_inv)?$/u,
];

/**
 * Throws CheckpointError naming a tensor that belongs to a part that the model computes, such as the bias of a
 * projection or a norm that the config does not switch on: without it the results would be others.
 */
export function refuseUnusedParts(
  dir: string,
  config: ModelConfig,
  unexpected: readonly string[],
): void {
  const parts = unexpected.filter((name) => isPart(config, name));
  if (parts.length === 0) return;
  const more = parts.length > 1 ? `, and ${parts.length - 1} more` : "";
  throw new CheckpointError(
    `${dir}: tensor ${parts[0]}${more}: unknown to ${config.modelType} with this config.json, and the results would be wrong without it`,
  );
}

function isPart({ numLayers }: ModelConfig, name: string): boolean {
  if (HARMLESS.some((pattern) => pattern.test(name))) return false;
  const layer = /^model\.layers\.(\d+)\./u.exec(name)?.[1];
  if (layer !== undefined) return Number(layer) < numLayers;
  // A head of its own beside a tied one is what Hugging Face's classes leave out as well.
  return /^(model\.embed_tokens|model\.norm|lm_head)\./u.test(name) && name !== "lm_head.weight";
}
