/**
 * llama.cpp as a contender's process: node llama-cpp-child.ts OPTIONS, a LlamaChildOptions in JSON.
 * Batches are built by node-llama-cpp's native context itself, without the queue around it: the least that llama.cpp
 * costs. That layer is the package's own and not public, so the package's version is fixed (llama-cpp.ts).
 */

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { errorMessage } from "../../core/error-message.ts";
import type { AnswerLine, ReadyLine, RequestLine } from "./child-contender.ts";
import type { Generation } from "./contender.ts";

/** What the process is told. */
export interface LlamaChildOptions {
  /** dist/index.js of node-llama-cpp. */
  readonly entry: string;
  readonly gguf: string;
  readonly gpu: "vulkan" | false;
  /** Tokens of one sequence. */
  readonly contextSize: number;
  readonly maxStreams: number;
  /** Tokens of one batch at most. */
  readonly batchSize: number;
  readonly flashAttention: boolean;
}

/** The native context, as far as it is used here. */
interface NativeContext {
  initBatch(size: number): void;
  /** Indices of the logits that were asked for. */
  addToBatch(
    sequence: number,
    firstPosition: number,
    tokens: Uint32Array,
    logits: Uint32Array,
  ): Uint32Array;
  decodeBatch(): Promise<void>;
  sampleToken(logitIndex: number, sampler: NativeSampler): Promise<number>;
  disposeSequence(sequence: number): void;
}

interface NativeSampler {
  applyConfig(config: { temperature: number }): void;
}

interface LlamaModel {
  readonly _model: unknown;
  readonly gpuLayers: number;
  createContext(options: object): Promise<{ readonly _ctx: NativeContext }>;
}

interface Llama {
  readonly gpu: string | false;
  readonly cpuMathCores: number;
  getGpuDeviceNames(): Promise<readonly string[]>;
  loadModel(options: object): Promise<LlamaModel>;
  readonly _bindings: { readonly AddonSampler: new (model: unknown) => NativeSampler };
}

/** Continues prompts on native sequences 0, 1, …, and forgets them. */
class LlamaRunner {
  readonly #context: NativeContext;
  readonly #sampler: NativeSampler;
  readonly #batchSize: number;

  constructor(context: NativeContext, sampler: NativeSampler, batchSize: number) {
    this.#context = context;
    this.#sampler = sampler;
    this.#batchSize = batchSize;
  }

  async generate({ prompts, numTokens, tokenwise }: RequestLine): Promise<Generation> {
    const start = performance.now();
    const tokenIds = (await this.#prefill(prompts, tokenwise ? 1 : this.#batchSize)).map(
      (first) => [first],
    );
    const prefilled = performance.now();
    for (let step = 1; step < numTokens; step++) {
      const next = await this.#decode(
        tokenIds.map((ids, i) => ({
          sequence: i,
          from: prompts[i].length + step - 1,
          tokens: [ids[step - 1]],
        })),
      );
      for (const [i, id] of next.entries()) tokenIds[i].push(id!);
    }
    const decodeMs = performance.now() - prefilled;
    for (const i of prompts.keys()) this.#context.disposeSequence(i);
    const decodedTokens = (numTokens - 1) * prompts.length;
    return { tokenIds, prefillMs: prefilled - start, decodedTokens, decodeMs };
  }

  /** First token of each prompt; a batch holds whole prompts as long as they fit. */
  async #prefill(prompts: readonly (readonly number[])[], batchSize: number): Promise<number[]> {
    const firsts: number[] = [];
    let batch: Part[] = [];
    let room = batchSize;
    const run = async () => {
      if (batch.length === 0) return;
      for (const [i, id] of (await this.#decode(batch)).entries()) {
        if (id !== undefined) firsts[batch[i].sequence] = id;
      }
      batch = [];
      room = batchSize;
    };
    for (const [sequence, prompt] of prompts.entries()) {
      if (prompt.length > room) await run();
      for (let from = 0; from < prompt.length; from += batchSize) {
        const tokens = prompt.slice(from, from + batchSize);
        const inside = from + tokens.length < prompt.length;
        batch.push({ sequence, from, tokens, inside });
        room -= tokens.length;
        if (inside || room === 0) await run();
      }
    }
    await run();
    return firsts;
  }

  /** The token after each part; undefined after one that ends inside of a prompt. */
  async #decode(parts: readonly Part[]): Promise<(number | undefined)[]> {
    this.#context.initBatch(parts.reduce((sum, { tokens }) => sum + tokens.length, 0));
    const logits = parts.map(({ sequence, from, tokens, inside }) =>
      this.#context.addToBatch(
        sequence,
        from,
        Uint32Array.from(tokens),
        inside === true ? new Uint32Array() : Uint32Array.of(tokens.length - 1),
      ),
    );
    await this.#context.decodeBatch();
    const ids: (number | undefined)[] = [];
    for (const [index] of logits) {
      ids.push(
        index === undefined ? undefined : await this.#context.sampleToken(index, this.#sampler),
      );
    }
    return ids;
  }
}

/** Consecutive tokens of one sequence. */
interface Part {
  readonly sequence: number;
  readonly from: number;
  readonly tokens: readonly number[];
  /** More of the same prompt follows: nothing is sampled. */
  readonly inside?: boolean;
}

function answer(line: AnswerLine | ReadyLine): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

async function main(options: LlamaChildOptions): Promise<void> {
  const { getLlama } = (await import(pathToFileURL(options.entry).href)) as {
    readonly getLlama: (options: object) => Promise<Llama>;
  };
  const llama = await getLlama({
    gpu: options.gpu,
    build: "never",
    skipDownload: true,
    logLevel: "warn",
    // Stdout is the protocol's.
    logger: (_level: string, message: string) => process.stderr.write(`${message}\n`),
  });
  const { batchSize } = options;
  const threads = llama.cpuMathCores;
  const model = await llama.loadModel({
    modelPath: options.gguf,
    gpuLayers: options.gpu === false ? 0 : "max",
    ignoreMemorySafetyChecks: true,
  });
  const sampler = new llama._bindings.AddonSampler(model._model);
  sampler.applyConfig({ temperature: 0 });
  const open = async (sequences: number) => {
    const { _ctx: context } = await model.createContext({
      contextSize: options.contextSize,
      sequences,
      batchSize,
      threads,
      flashAttention: options.flashAttention,
      ignoreMemorySafetyChecks: true,
    });
    return new LlamaRunner(context, sampler, batchSize);
  };
  // One stream has a context of its own: it does not pay for the cells of others.
  const alone = await open(1);
  const together = options.maxStreams > 1 ? await open(options.maxStreams) : alone;
  const [gpuName] = await llama.getGpuDeviceNames();
  const attention = `flash attention ${options.flashAttention ? "on" : "off"}`;
  answer({
    ready: {
      device: llama.gpu === false ? `CPU, ${threads} threads` : gpuName,
      details: `f16 weights, f16 KV cache, batches of ${batchSize}, ${attention}`,
    },
  });
  for await (const line of createInterface({ input: process.stdin })) {
    try {
      const request = JSON.parse(line) as RequestLine;
      const runner = request.prompts.length === 1 ? alone : together;
      answer({ generation: await runner.generate(request) });
    } catch (error) {
      answer({ error: errorMessage(error) });
    }
  }
}

await main(JSON.parse(process.argv[2]) as LlamaChildOptions);
// Native threads may outlive the last line.
process.exit(0);
