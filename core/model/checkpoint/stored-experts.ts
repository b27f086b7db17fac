/** The format in which a checkpoint has its routed experts. */

import type { ExpertFormat } from "../../expert-format.ts";
import { type ModelConfig, moeLayers } from "../config.ts";
import { familyOf } from "../families/families.ts";
import { mxfp4Tensors } from "./stored-source.ts";

/**
 * The format of experts that all routed experts have in the files already; undefined where they are floats.
 * @param has whether the files have a tensor of a name: a config may say MXFP4 and re-saved files have floats
 */
export function storedExperts(
  config: ModelConfig,
  has: (name: string) => boolean,
): ExpertFormat | undefined {
  const family = familyOf(config);
  const layers = moeLayers(config);
  const isMxfp4 = (layer: number, expert: number) => {
    const { gate, up, down } = family.expertSources(config, layer, expert);
    return [gate, up, down].every(
      ({ name, shape, encoding }) =>
        encoding === "MXFP4" && has(mxfp4Tensors(name, shape).blocks.name),
    );
  };
  const all = layers.every((layer) => {
    for (let expert = 0; expert < config.numExperts; expert++) {
      if (!isMxfp4(layer, expert)) return false;
    }
    return true;
  });
  return all && layers.length > 0 ? "mxfp4" : undefined;
}
