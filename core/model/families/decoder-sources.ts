/** Names and shapes of the tensors that model families share, as Hugging Face's checkpoints have them. */

import type { HeadsAttention, LatentAttention, ModelConfig } from "../config.ts";
import type {
  FfnSources,
  HeadsSources,
  LatentSources,
  ModelFamily,
  ProjectionSource,
  TensorEncoding,
  TensorSource,
} from "./model-family.ts";

/** A whole tensor that no quantisation touches. */
export function tensor(name: string, ...shape: readonly number[]): TensorSource {
  return { name, shape };
}

/** A projection's matrix [out, in], in the encoding that the published checkpoint has it in. */
function linear(
  { quantization }: ModelConfig,
  name: string,
  out: number,
  columns: number,
): TensorSource {
  const source = tensor(`${name}.weight`, out, columns);
  return quantization === "fp8" ? { ...source, encoding: "FP8" } : source;
}

/** A gated FFN of a width as three projections of these names below a prefix. */
export function ffn(
  config: ModelConfig,
  prefix: string,
  width: number,
  [gate, up, down]: readonly [string, string, string] = ["gate_proj", "up_proj", "down_proj"],
): FfnSources {
  const { hiddenSize } = config;
  return {
    gate: linear(config, `${prefix}.${gate}`, width, hiddenSize),
    up: linear(config, `${prefix}.${up}`, width, hiddenSize),
    down: linear(config, `${prefix}.${down}`, hiddenSize, width),
  };
}

/** How tensors that hold all experts of a layer are laid out. */
export interface FusedLayout {
  /** Names of the tensors of gate with up, and of down. */
  readonly gateUp: string;
  readonly down: string;
  /** Rows of gate and up take turns, instead of all of gate above all of up. */
  readonly interleaved?: boolean;
  /** Matrices are [in, out]. */
  readonly transposed?: boolean;
  readonly encoding?: TensorEncoding;
}

/** One routed expert within tensors that hold all of a layer: gate with up [numExperts, 2·width, hidden], down [numExperts, hidden, width]. */
export function fusedExpert(
  { numExperts, hiddenSize, expertIntermediateSize: width }: ModelConfig,
  expert: number,
  { gateUp, down, interleaved = false, transposed = false, encoding }: FusedLayout,
): FfnSources {
  const part = (
    name: string,
    rows: number,
    columns: number,
    allRows: number,
    firstRow: number,
    rowStep: number,
  ): TensorSource => ({
    name,
    shape: [rows, columns],
    ...(encoding && { encoding }),
    part: {
      shape: transposed ? [numExperts, columns, allRows] : [numExperts, allRows, columns],
      index: expert,
      firstRow,
      rowStep,
      transposed,
    },
  });
  const [upRow, step] = interleaved ? [1, 2] : [width, 1];
  return {
    gate: part(gateUp, width, hiddenSize, 2 * width, 0, step),
    up: part(gateUp, width, hiddenSize, 2 * width, upRow, step),
    down: part(down, hiddenSize, width, hiddenSize, 0, 1),
  };
}

/** Rows of one expert's bias within a tensor [numExperts, allRows] of a layer's. */
export function fusedBias(
  { numExperts }: ModelConfig,
  expert: number,
  name: string,
  rows: {
    readonly count: number;
    readonly of: number;
    readonly first: number;
    readonly step: number;
  },
): TensorSource {
  return {
    name,
    shape: [rows.count],
    part: {
      shape: [numExperts, rows.of],
      index: expert,
      firstRow: rows.first,
      rowStep: rows.step,
      transposed: false,
    },
  };
}

/** The same FFN where re-saved checkpoints have it. */
export function orResaved(published: FfnSources, resaved: FfnSources): FfnSources {
  const either = (part: "gate" | "up" | "down") => ({ ...published[part], resaved: resaved[part] });
  return { ...published, gate: either("gate"), up: either("up"), down: either("down") };
}

/** An expert with a tensor per projection, or within the two tensors per layer that transformers 5 holds and can save. */
export function separateExpert(
  config: ModelConfig,
  layer: number,
  expert: number,
  published: FfnSources,
): FfnSources {
  const prefix = `model.layers.${layer}.mlp.experts`;
  const names = { gateUp: `${prefix}.gate_up_proj`, down: `${prefix}.down_proj` };
  return orResaved(published, fusedExpert(config, expert, names));
}

/** An expert under the names that most families have. */
export function mlpExpert(config: ModelConfig, layer: number, expert: number): FfnSources {
  const prefix = `model.layers.${layer}.mlp.experts.${expert}`;
  return separateExpert(config, layer, expert, ffn(config, prefix, config.expertIntermediateSize));
}

/** A gate [numExperts, hiddenSize] under the name that most families have. */
export function mlpGate({ numExperts, hiddenSize }: ModelConfig, layer: number): ProjectionSource {
  return { weight: tensor(`model.layers.${layer}.mlp.gate.weight`, numExperts, hiddenSize) };
}

function headsSources(
  config: ModelConfig,
  prefix: string,
  attention: HeadsAttention,
): HeadsSources {
  const { hiddenSize } = config;
  const { numHeads, numKvHeads, headDim, qkvBias, outputBias, qkNorm, sinks } = attention;
  const projection = (name: string, rows: number, columns: number, bias: boolean) => ({
    weight: linear(config, `${prefix}.${name}`, rows, columns),
    ...(bias && { bias: tensor(`${prefix}.${name}.bias`, rows) }),
  });
  const norm = (name: string, heads: number) =>
    tensor(`${prefix}.${name}.weight`, qkNorm === "head" ? headDim : heads * headDim);
  return {
    kind: "heads",
    q: projection("q_proj", numHeads * headDim, hiddenSize, qkvBias),
    k: projection("k_proj", numKvHeads * headDim, hiddenSize, qkvBias),
    v: projection("v_proj", numKvHeads * headDim, hiddenSize, qkvBias),
    o: projection("o_proj", hiddenSize, numHeads * headDim, outputBias),
    ...(qkNorm !== "none" && {
      qNorm: norm("q_norm", numHeads),
      kNorm: norm("k_norm", numKvHeads),
    }),
    ...(sinks && { sinks: tensor(`${prefix}.sinks`, numHeads) }),
  };
}

function latentSources(
  config: ModelConfig,
  prefix: string,
  attention: LatentAttention,
): LatentSources {
  const { hiddenSize } = config;
  const { numHeads, qLoraRank, kvLoraRank, nopeDim, ropeDim, valueDim } = attention;
  const queryRows = numHeads * (nopeDim + ropeDim);
  const project = (name: string, rows: number, columns: number) =>
    linear(config, `${prefix}.${name}`, rows, columns);
  const query =
    qLoraRank === undefined
      ? { q: project("q_proj", queryRows, hiddenSize) }
      : {
          qDown: project("q_a_proj", qLoraRank, hiddenSize),
          qNorm: tensor(`${prefix}.q_a_layernorm.weight`, qLoraRank),
          q: project("q_b_proj", queryRows, qLoraRank),
        };
  return {
    kind: "latent",
    ...query,
    kvDown: project("kv_a_proj_with_mqa", kvLoraRank + ropeDim, hiddenSize),
    kvNorm: tensor(`${prefix}.kv_a_layernorm.weight`, kvLoraRank),
    kvUp: project("kv_b_proj", numHeads * (nopeDim + valueDim), kvLoraRank),
    o: { weight: project("o_proj", hiddenSize, numHeads * valueDim) },
  };
}

/** Sources that no family has elsewhere: what stands outside of the layers, norms, attention and dense FFNs. */
export const decoderSources: Pick<
  ModelFamily,
  "modelSources" | "attentionSources" | "denseSources"
> = {
  modelSources: ({ vocabSize, hiddenSize, tieWordEmbeddings }) => {
    const embedding = tensor("model.embed_tokens.weight", vocabSize, hiddenSize);
    return {
      embedding,
      finalNorm: tensor("model.norm.weight", hiddenSize),
      lmHead: tieWordEmbeddings ? embedding : tensor("lm_head.weight", vocabSize, hiddenSize),
    };
  },
  attentionSources: (config, layer) => {
    const prefix = `model.layers.${layer}`;
    const { attention, hiddenSize } = config;
    return {
      inputNorm: tensor(`${prefix}.input_layernorm.weight`, hiddenSize),
      attention:
        attention.kind === "heads"
          ? headsSources(config, `${prefix}.self_attn`, attention)
          : latentSources(config, `${prefix}.self_attn`, attention),
      postAttentionNorm: tensor(`${prefix}.post_attention_layernorm.weight`, hiddenSize),
    };
  },
  denseSources: (config, layer) =>
    ffn(config, `model.layers.${layer}.mlp`, config.denseIntermediateSize),
};
