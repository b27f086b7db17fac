/** Layers that see a window, among layers that see all, in `config.json`. */

import { z } from "zod";

import { type DecoderFields, MAX_SIZE, integer } from "./config-fields.ts";
import type { ConfigProblem } from "../config-error.ts";

const LAYER_TYPES = ["sliding_attention", "full_attention"] as const;

/** Fields of layers that see a window; `window` is the class's default. */
export function slidingFields(window: number) {
  return {
    /** Null is no window, not the default one. */
    sliding_window: integer(1, MAX_SIZE).nullable().default(window),
    /** In turns, a window first, where it is absent. */
    layer_types: z
      .array(z.enum(LAYER_TYPES, { error: LAYER_TYPES.join(" or ") }), { error: "a list of types" })
      .optional(),
  };
}

type SlidingFields = DecoderFields & z.output<z.ZodObject<ReturnType<typeof slidingFields>>>;

function layerTypes({ layer_types: types, num_hidden_layers: length }: SlidingFields) {
  return types ?? Array.from({ length }, (_, layer) => LAYER_TYPES[layer % 2]);
}

/** Keys that a query of each layer sees; undefined sees all. [numLayers] */
export function windowsOf(fields: SlidingFields): (number | undefined)[] {
  const window = fields.sliding_window ?? undefined;
  return layerTypes(fields).map((type) => (type === "sliding_attention" ? window : undefined));
}

/** What does not fit together in `slidingFields`. */
export function slidingProblems(fields: SlidingFields): ConfigProblem[] {
  const problems: ConfigProblem[] = [];
  const types = layerTypes(fields);
  const { num_hidden_layers: numLayers, sliding_window: window } = fields;
  if (types.length !== numLayers) {
    const expectation = `one for each of num_hidden_layers ${numLayers}`;
    problems.push({ name: "layer_types", value: types, expectation });
  }
  if (window === null && types.includes("sliding_attention")) {
    const expectation = "the window of layers that are sliding_attention";
    problems.push({ name: "sliding_window", value: null, expectation });
  }
  return problems;
}
