/** The router's front doors, HTTP and gRPC, over one engine. */

import type { GenerationConfig, ModelConfig } from "../../core/model/config.ts";
import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import { bindServer, stopServer } from "../../core/platform/grpc.ts";
import { listenError } from "../../core/platform/listening.ts";
import { hostPort } from "../../core/platform/service-options.ts";
import type { Engine } from "../engine/request.ts";
import { createApiKeyCheck } from "./api-key.ts";
import type { PromptReport } from "./serving.ts";
import { createGrpcServer } from "./grpc-server.ts";
import { createHttpServer } from "./http-server.ts";
import { OpenRequests } from "./open-requests.ts";
import { longestToken } from "./prompts.ts";
import type { ApiLimits, Serving } from "./serving.ts";

/** What the doors are made of. */
export interface ApiOptions {
  readonly engine: Engine;
  /** Absent where the model's directory has none: token-id prompts only. */
  readonly tokenizer?: Tokenizer | undefined;
  readonly config: ModelConfig;
  readonly generation: GenerationConfig;
  readonly servedModelName: string;
  /** Absent: everyone may come in. */
  readonly apiKey?: string | undefined;
  /** Why new requests are refused now; undefined while they are served. */
  readonly unavailableReason: () => string | undefined;
  /** Text of GET /metrics, in Prometheus' format. */
  readonly metricsText: () => string | Promise<string>;
  /** Told of each prompt whose completions have all come to their end; absent: nobody is. */
  readonly onPrompt?: (report: PromptReport) => void;
  /** Shards in the placement; absent: none. */
  readonly numShards?: () => number;
  /** What is known of shards and placement, undefined while the router starts; absent: there are no shards. */
  readonly placement?: Serving["placement"];
  readonly log: Serving["log"];
  readonly limits?: Partial<ApiLimits>;
}

/** Both doors. */
export interface Api {
  /** Opens the HTTP door and returns its port (chosen where 0 is given). Rejects with ListenError. */
  listenHttp(host: string, port: number): Promise<number>;
  /** Opens the gRPC door and returns its port (chosen where 0 is given). Rejects with ListenError. */
  listenGrpc(host: string, port: number): Promise<number>;
  /** Refuses new requests, lets open ones end for `graceMs` (default 3 s), ends the rest with an error, closes both doors. */
  close(graceMs?: number): Promise<void>;
}

const DEFAULT_LIMITS: ApiLimits = { bodyBytes: 8 * 1024 * 1024, unreadMs: 30_000 };
/** With all that is closed after the doors, well within the process's own deadline for its stop. */
const GRACE_MS = 3_000;

/** Builds both doors; nothing listens yet. */
export function createApi(options: ApiOptions): Api {
  const { engine, tokenizer, config, generation, servedModelName, log } = options;
  const openRequests = new OpenRequests();
  const serving: Serving = {
    engine,
    tokenizer,
    longestTokenBytes: tokenizer === undefined ? 1 : longestToken(tokenizer),
    config,
    generation,
    servedModelName,
    startedAt: Math.floor(Date.now() / 1000),
    unavailableReason: () => openRequests.refusal ?? options.unavailableReason(),
    openRequests,
    limits: { ...DEFAULT_LIMITS, ...options.limits },
    log,
    onPrompt: options.onPrompt ?? (() => undefined),
    numShards: options.numShards ?? (() => 0),
    placement: options.placement,
  };
  const checkApiKey = createApiKeyCheck(options.apiKey);
  const { metricsText } = options;
  const http = createHttpServer({ serving, checkApiKey, metricsText });
  const grpc = createGrpcServer(serving, checkApiKey);
  return {
    listenHttp: async (host, port) => {
      await http.listen({ host, port }).catch((error: Error) => {
        throw listenError(hostPort(host, port), "--http-port", error.message);
      });
      const address = http.server.address();
      return typeof address === "object" && address !== null ? address.port : port;
    },
    listenGrpc: (host, port) => bindServer(grpc.server, hostPort(host, port), "--grpc-port"),
    close: async (graceMs = GRACE_MS) => {
      await openRequests.stop(graceMs);
      grpc.stopHealth();
      http.server.closeAllConnections();
      await Promise.all([http.close(), stopServer(grpc.server, 500)]);
    },
  };
}
