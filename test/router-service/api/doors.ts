/** Both doors on free ports over a real engine with a toy runner: what is said is nonsense, how it is said is real. */

import path from "node:path";

import { readGenerationConfig, readModelConfig } from "../../../core/model/load-config.ts";
import type { Tokenizer } from "../../../core/model/tokenizer/text.ts";
import { loadTokenizer } from "../../../core/model/tokenizer/tokenizer.ts";
import { createApi, type ApiOptions } from "../../../router-service/api/api.ts";
import type { EngineOptions, RunningEngine } from "../../../router-service/engine/engine.ts";
import { toyEngine } from "../../support/engine-requests.ts";
import type { ToyOptions, ToyRunner } from "../../support/toy-runner.ts";

const DEMO_MODEL = path.join(import.meta.dirname, "../../../models/demo-moe");

/** Name that the doors serve the model under. */
export const MODEL = "demo";

/** The demo model's config. */
export const CONFIG = await readModelConfig(DEMO_MODEL);

/** Entries of its vocabulary, the first token id that it has not. */
export const VOCAB = CONFIG.vocabSize;

/** Changes to the doors and to what is behind them. */
export interface DoorOptions {
  readonly toy?: Partial<ToyOptions>;
  readonly engine?: Partial<EngineOptions>;
  readonly api?: Partial<ApiOptions>;
  /** Default: the demo model's. */
  readonly tokenizer?: "demo" | "none";
}

/** Open doors. */
export interface Doors {
  readonly url: string;
  readonly grpcAddress: string;
  readonly engine: RunningEngine;
  readonly runner: ToyRunner;
  readonly tokenizer: Tokenizer;
  /** Warnings and errors that were logged. */
  readonly logged: { readonly facts: object; readonly message: string }[];
  /** POSTs JSON (or the bytes as they are) and returns status and parsed body. */
  post(route: string, body: unknown, headers?: Record<string, string>): Promise<Answer>;
  get(route: string, headers?: Record<string, string>): Promise<Answer>;
  close(graceMs?: number): Promise<void>;
}

/** An HTTP answer with its JSON body. */
export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  // What an answer looks like is what the tests are about.
  // oxlint-disable-next-line typescript/no-explicit-any
  readonly body: any;
}

/** Opens both doors on free ports; greedy unless a request says otherwise. */
export async function openDoors(options: DoorOptions = {}): Promise<Doors> {
  const generation = await readGenerationConfig(DEMO_MODEL, CONFIG);
  const tokenizer = await loadTokenizer(DEMO_MODEL);
  if (tokenizer === undefined) throw new Error("the demo model has no tokenizer");
  const { engine, runner } = toyEngine(
    { numBlocks: 256, vocabSize: VOCAB, ...options.toy },
    { maxModelLen: 256, ...options.engine },
  );
  const logged: { facts: object; message: string }[] = [];
  const log = (facts: object, message: string) => void logged.push({ facts, message });
  const api = createApi({
    engine,
    tokenizer: options.tokenizer === "none" ? undefined : tokenizer,
    config: CONFIG,
    generation: { eosTokenIds: generation.eosTokenIds, temperature: 0 },
    servedModelName: MODEL,
    unavailableReason: () => undefined,
    metricsText: () => "moe_test 1\n",
    log: { warn: log, error: log },
    ...options.api,
  });
  const httpPort = await api.listenHttp("127.0.0.1", 0);
  const grpcPort = await api.listenGrpc("127.0.0.1", 0);
  const url = `http://127.0.0.1:${httpPort}`;
  const request = async (route: string, init: RequestInit): Promise<Answer> => {
    const response = await fetch(url + route, { ...init, signal: AbortSignal.timeout(10_000) });
    const text = await response.text();
    const json = response.headers.get("content-type")?.includes("json") === true;
    const body: unknown = json ? JSON.parse(text) : text;
    return { status: response.status, headers: response.headers, body };
  };
  return {
    url,
    grpcAddress: `127.0.0.1:${grpcPort}`,
    engine,
    runner,
    tokenizer,
    logged,
    post: (route, body, headers) =>
      request(route, {
        method: "POST",
        headers: { "content-type": "application/json", ...headers },
        body: body instanceof Uint8Array ? (body as Uint8Array<ArrayBuffer>) : JSON.stringify(body),
      }),
    get: (route, headers) => request(route, { headers }),
    close: async (graceMs = 0) => {
      await api.close(graceMs);
      await engine.close();
    },
  };
}
