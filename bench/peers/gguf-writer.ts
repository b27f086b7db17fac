/** A Qwen2-MoE checkpoint as a GGUF file that llama.cpp runs: architecture `qwen2moe`. */

import { join } from "node:path";

import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { familyOf } from "../../core/model/families/families.ts";
import { readJsonFile } from "../../core/model/checkpoint/json-file.ts";
import type { TensorSource } from "../../core/model/families/model-family.ts";
import { bytesOf, f32ToF16, F16_MAX, maxMagnitude, numElements, toF32 } from "../../core/tensor.ts";
import { ggufBytes, type GgufTensor, type GgufValue, writeGguf } from "./gguf-file.ts";

const ARCHITECTURE = "qwen2moe";
/** llama.cpp's `LLAMA_FTYPE_MOSTLY_F16`. */
const MOSTLY_F16 = 1;
const MAX_TOKENIZER_BYTES = 100_000_000;

/** The checkpoint asks for something that llama.cpp's qwen2moe does not compute. */
export class GgufError extends Error {
  override readonly name = "GgufError";
}

/**
 * Writes the checkpoint to `file`: matrices in f16; norms, biases and gates in f32, as llama.cpp's own converter does.
 * `onBytes` is told of data written, and of how much there will be. Throws GgufError, or as `checkpoint.read`.
 */
export async function writeQwen2MoeGguf(
  checkpoint: Checkpoint,
  file: string,
  onBytes: (done: number, total: number) => void = () => {},
): Promise<void> {
  const facts = sizes(checkpoint);
  const tensors = qwen2MoeTensors(checkpoint);
  const total = tensors.reduce((sum, tensor) => sum + ggufBytes(tensor), 0);
  const metadata = new Map([...facts, ...(await vocabulary(checkpoint))]);
  let done = 0;
  await writeGguf(file, metadata, tensors, (numBytes) => onBytes((done += numBytes), total));
}

/** Refuses by name what llama.cpp would compute otherwise; returns what the others have. */
function checkSupported({ dir, config }: Checkpoint) {
  const refuse = (what: string): never => {
    throw new GgufError(`${dir}: ${what}, which llama.cpp's ${ARCHITECTURE} does not compute`);
  };
  const { attention, sharedExpert, gate, rope } = config;
  if (config.modelType !== "qwen2_moe") return refuse(`model_type is ${config.modelType}`);
  if (attention.kind !== "heads" || !attention.qkvBias) return refuse("q, k and v have no bias");
  if (attention.windows.some((window) => window !== undefined)) return refuse("a sliding window");
  if (rope.yarn !== undefined) return refuse("RoPE is scaled");
  if (gate.normTopkProb) return refuse("norm_topk_prob is true");
  if (config.layers.includes("dense")) return refuse("some layers are dense");
  if (sharedExpert === undefined) return refuse("there is no shared expert");
  return { attention, sharedExpert };
}

function sizes(checkpoint: Checkpoint): Map<string, GgufValue> {
  const { config } = checkpoint;
  const { attention, sharedExpert } = checkSupported(checkpoint);
  const u32 = (value: number): GgufValue => ({ type: "u32", value });
  const f32 = (value: number): GgufValue => ({ type: "f32", value });
  const own: Record<string, GgufValue> = {
    block_count: u32(config.numLayers),
    context_length: u32(config.maxPositions),
    embedding_length: u32(config.hiddenSize),
    feed_forward_length: u32(config.denseIntermediateSize),
    "attention.head_count": u32(attention.numHeads),
    "attention.head_count_kv": u32(attention.numKvHeads),
    "attention.key_length": u32(attention.headDim),
    "attention.value_length": u32(attention.headDim),
    "attention.layer_norm_rms_epsilon": f32(config.rmsNormEps),
    "rope.freq_base": f32(config.rope.theta),
    "rope.dimension_count": u32(attention.headDim),
    expert_count: u32(config.numExperts),
    expert_used_count: u32(config.numExpertsPerToken),
    expert_feed_forward_length: u32(config.expertIntermediateSize),
    expert_shared_feed_forward_length: u32(sharedExpert.intermediateSize),
  };
  return new Map<string, GgufValue>([
    ["general.architecture", { type: "string", value: ARCHITECTURE }],
    ["general.file_type", u32(MOSTLY_F16)],
    ["general.quantization_version", u32(2)],
    ...Object.entries(own).map(([key, value]) => [`${ARCHITECTURE}.${key}`, value] as const),
  ]);
}

/** The names of all tokens, of tokenizer.json where it is there: token ids go in and come out, nothing is encoded. */
async function vocabulary({ dir, config }: Checkpoint): Promise<Map<string, GgufValue>> {
  const names = Array.from({ length: config.vocabSize }, (_, id) => `<${id}>`);
  const raw = (await readJsonFile(join(dir, "tokenizer.json"), MAX_TOKENIZER_BYTES)) as
    | { readonly model?: { readonly vocab?: Readonly<Record<string, number>> } }
    | undefined;
  for (const [name, id] of Object.entries(raw?.model?.vocab ?? {})) {
    if (id < names.length) names[id] = name;
  }
  return new Map<string, GgufValue>([
    ["tokenizer.ggml.model", { type: "string", value: "gpt2" }],
    ["tokenizer.ggml.pre", { type: "string", value: "qwen2" }],
    ["tokenizer.ggml.tokens", { type: "strings", value: names }],
    // 1 is a normal token: none of them ends a text, since ends are the bench's business.
    ["tokenizer.ggml.token_type", { type: "i32s", value: names.map(() => 1) }],
    ["tokenizer.ggml.merges", { type: "strings", value: [] }],
  ]);
}

/** Every tensor under llama.cpp's name. */
function qwen2MoeTensors(checkpoint: Checkpoint): GgufTensor[] {
  const { config } = checkpoint;
  const family = familyOf(config);
  const tensors: GgufTensor[] = [];
  const add = (
    name: string,
    type: GgufTensor["type"],
    source: TensorSource | undefined,
    shape = source?.shape,
  ) => {
    if (source === undefined || shape === undefined) throw new TypeError(`no source for ${name}`);
    tensors.push({ name, type, shape, chunks: () => readAs(checkpoint, type, [source]) });
  };
  /** The same matrix of all experts, one after the other. */
  const addExperts = (name: string, sources: readonly TensorSource[]) => {
    const shape = [sources.length, ...sources[0].shape];
    tensors.push({ name, type: "F16", shape, chunks: () => readAs(checkpoint, "F16", sources) });
  };

  const model = family.modelSources(config);
  add("token_embd.weight", "F16", model.embedding);
  add("output_norm.weight", "F32", model.finalNorm);
  add("output.weight", "F16", model.lmHead);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const block = `blk.${layer}`;
    const { inputNorm, attention, postAttentionNorm } = family.attentionSources(config, layer);
    if (attention.kind !== "heads") throw new TypeError("latent attention was not refused");
    add(`${block}.attn_norm.weight`, "F32", inputNorm);
    for (const part of ["q", "k", "v"] as const) {
      add(`${block}.attn_${part}.weight`, "F16", attention[part].weight);
      add(`${block}.attn_${part}.bias`, "F32", attention[part].bias);
    }
    add(`${block}.attn_output.weight`, "F16", attention.o.weight);
    add(`${block}.ffn_norm.weight`, "F32", postAttentionNorm);

    const { gate, shared, sharedGate } = family.moeSources(config, layer);
    add(`${block}.ffn_gate_inp.weight`, "F32", gate.weight);
    add(`${block}.ffn_gate_inp_shexp.weight`, "F32", sharedGate, [config.hiddenSize]);
    const experts = Array.from({ length: config.numExperts }, (_, expert) =>
      family.expertSources(config, layer, expert),
    );
    for (const part of ["gate", "up", "down"] as const) {
      const sources = experts.map((expert) => expert[part]);
      addExperts(`${block}.ffn_${part}_exps.weight`, sources);
      add(`${block}.ffn_${part}_shexp.weight`, "F16", shared?.[part]);
    }
  }
  return tensors;
}

async function* readAs(
  checkpoint: Checkpoint,
  type: GgufTensor["type"],
  sources: readonly TensorSource[],
): AsyncGenerator<Uint8Array> {
  for (const source of sources) {
    const tensor = await checkpoint.read(source);
    const values = toF32(tensor);
    if (type === "F32") {
      yield bytesOf(values);
      continue;
    }
    const largest = maxMagnitude(values);
    if (!(largest <= F16_MAX)) {
      const where = `${checkpoint.dir}: tensor ${source.name}, ${numElements(tensor.shape)} values`;
      throw new GgufError(`${where}: the largest is ${largest}, f16 holds ${F16_MAX}`);
    }
    yield bytesOf(f32ToF16(values));
  }
}
