import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings, type ExpertLookup } from "./expert-bindings.ts";
import { packedProduct } from "./packed-product.ts";
import { type InputLoads, sharedInput } from "./shared-input.ts";
import { numTiles } from "./tile.ts";

const WORKGROUP = 32;

/**
 * The second half of the experts of a bank: out[pair, h] = inner[pair]·down[slot, h] + downBias[slot, h].
 *
 * 1 inner f32 [numPairs, intermediateSize]; 2 weights [slots of the bank, hiddenSize, intermediateSize];
 * 3 out f32 [numPairs, hiddenSize]; 5 scales likewise; 7 biases f32 [slots of the bank, hiddenSize];
 * else as expert-bindings.ts
 * An invocation computes 4 columns of up to `rows` rows.
 */
export function expertDown(
  sizes: ExpertSizes,
  format: ExpertFormat,
  lookup: ExpertLookup,
  loads: InputLoads = "own",
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, expertBias } = sizes;
  const input = sharedInput(loads);
  const product = packedProduct(format, width, input);
  return {
    label: `expert down ${width}→${hiddenSize} ${format} ${lookup.kind}×${lookup.rows} ${loads}`,
    grid: (step) => [ceilDiv(hiddenSize / 4, WORKGROUP), numTiles(lookup, step), 1],
    wgsl: /* wgsl */ `${input.enable}
${COUNTS}
const H = ${hiddenSize}u;
const ROWS = ${lookup.rows}u;
@group(0) @binding(1) var<storage, read> x: array<${input.element}>;
@group(0) @binding(2) var<storage, read> weights: array<${product.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<vec4<f32>>;
${expertBindings(lookup)}
${product.functions}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>${input.parameters}) {
  let col = id.x * 4u;
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  // Beyond the last columns some of them again, for what is shared in loading.
  let w_row0 = place * H + min(col, H - 4u);
  let w_row1 = w_row0 + 1u;
  let w_row2 = w_row0 + 2u;
  let w_row3 = w_row0 + 3u;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    row[r] = ${input.rowStart("select(pair, 0u, pair == NONE)", width)};
  }
  ${product.fourColumns}
  ${expertBias ? "let bias = vec4<f32>(biases[w_row0], biases[w_row1], biases[w_row2], biases[w_row3]);" : ""}
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    if (pair == NONE || col >= H) { continue; }
    out[(pair * H + col) / 4u] = acc[r]${expertBias ? " + bias" : ""};
  }
}`,
  };
}
