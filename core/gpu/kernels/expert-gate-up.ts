import type { ExpertSizes } from "../../expert-device.ts";
import type { ExpertFormat } from "../../expert-format.ts";
import type { Kernel } from "../kernel.ts";
import { activationWgsl } from "./activation.ts";
import { ceilDiv, COUNTS, type StepSizes } from "./counts.ts";
import { expertBindings, type ExpertLookup } from "./expert-bindings.ts";
import { packedProduct } from "./packed-product.ts";
import { type InputLoads, sharedInput } from "./shared-input.ts";
import { numTiles } from "./tile.ts";

const WORKGROUP = 32;

/**
 * The first half of the experts of a bank:
 * out[pair, i] = activation(x[row]·gate[slot, i] + gateBias[slot, i], x[row]·up[slot, i] + upBias[slot, i]), row = pair / topK.
 *
 * 1 x f32 [numRows, hiddenSize]; 2 weights [slots of the bank, 2·intermediateSize, hiddenSize], gate above up;
 * 3 out f32 [numPairs, intermediateSize]; 5 scales likewise; 7 biases f32 [slots of the bank, 2·intermediateSize];
 * else as expert-bindings.ts
 * An invocation computes 2 columns of up to `rows` rows.
 */
export function expertGateUp(
  sizes: ExpertSizes,
  format: ExpertFormat,
  lookup: ExpertLookup,
  loads: InputLoads = "own",
): Kernel<StepSizes> {
  const { hiddenSize, expertIntermediateSize: width, activation, expertBias } = sizes;
  const input = sharedInput(loads);
  const product = packedProduct(format, hiddenSize, input);
  return {
    label: `expert gate-up ${hiddenSize}→${width} ${format} ${lookup.kind}×${lookup.rows} ${loads}`,
    grid: (step) => [ceilDiv(width / 2, WORKGROUP), numTiles(lookup, step), 1],
    wgsl: /* wgsl */ `${input.enable}
${COUNTS}
const I = ${width}u;
const ROWS = ${lookup.rows}u;
@group(0) @binding(1) var<storage, read> x: array<${input.element}>;
@group(0) @binding(2) var<storage, read> weights: array<${product.element}>;
@group(0) @binding(3) var<storage, read_write> out: array<vec2<f32>>;
${expertBindings(lookup)}
${product.functions}
${activationWgsl(activation, "vec2<f32>")}

@compute @workgroup_size(${WORKGROUP})
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(workgroup_id) group: vec3<u32>${input.parameters}) {
  let col = id.x * 2u;
  let tile = group.y;
  let place = tile_place(tile);
  if (place == NONE) { return; }
  // Two columns of gate, then the same two of up; beyond the last ones some of them again, for what is shared in loading.
  let w_row0 = place * 2u * I + min(col, I - 2u);
  let w_row1 = w_row0 + 1u;
  let w_row2 = w_row0 + I;
  let w_row3 = w_row2 + 1u;
  var row: array<u32, ROWS>;
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    row[r] = ${input.rowStart("row_of(select(pair, 0u, pair == NONE))", hiddenSize)};
  }
  ${product.fourColumns}
  ${expertBias ? "let bias = vec4<f32>(biases[w_row0], biases[w_row1], biases[w_row2], biases[w_row3]);" : ""}
  for (var r = 0u; r < ROWS; r++) {
    let pair = tile_pair(tile, r);
    if (pair == NONE || col >= I) { continue; }
    let both = acc[r]${expertBias ? " + bias" : ""};
    out[(pair * I + col) / 2u] = activate(both.xy, both.zw);
  }
}`,
  };
}
