/** ExpertService: one stream per router, from its hello over its placement to its dispatches. */

import { randomUUID } from "node:crypto";

import type { handleBidiStreamingCall, Server, ServerDuplexStream } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";

import { expertServiceDefinition } from "../core/expert-stream.ts";
import type { ExpertsSetting } from "../core/expert-formats.ts";
import { checkHellos, type WeightsSetting } from "../core/handshake.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { grpcStatusOf } from "../core/platform/grpc.ts";
import type { Logger } from "../core/platform/log.ts";
import {
  decodeDispatch,
  DispatchRefusedError,
  encodePartialSum,
  MAX_DISPATCH_ROWS,
  PROTOCOL_VERSION,
} from "../core/wire.ts";
import type { ShardPlacement } from "../proto/gen/switchyard/v1/cluster.ts";
import type {
  Dispatch,
  RouterHello,
  RouterMessage,
  ShardHello,
  ShardMessage,
} from "../proto/gen/switchyard/v1/expert.ts";
import { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import type { Batcher } from "./batcher.ts";
import type { ShardDevice } from "./device.ts";
import type { Residency } from "./residency.ts";
import { startDispatchSpan } from "./spans.ts";

/** A router that connects must say hello within this time. */
const HELLO_TIMEOUT_MS = 5_000;

/** Tells this start of the process from others. */
const INCARNATION = randomUUID();

/** What the service needs of its shard. */
export interface ExpertServiceOptions {
  readonly rank: number;
  readonly model: ModelConfig;
  readonly modelHash: string;
  readonly weights: WeightsSetting;
  readonly experts: ExpertsSetting;
  readonly device: ShardDevice;
  readonly residency: Residency;
  readonly batcher: Batcher;
  readonly logger: Logger;
  /** Milliseconds, monotonic; the batcher's clock. */
  readonly now: () => number;
  /** A placement could not be loaded: the shard can not go on. */
  readonly onFailure: (error: Error) => void;
}

type Call = ServerDuplexStream<RouterMessage, ShardMessage>;

/** Adds ExpertService to a server; the result ends every open stream with UNAVAILABLE. */
export function addExpertService(server: Server, options: ExpertServiceOptions): () => void {
  const sessions = new Set<RouterSession>();
  const connect: handleBidiStreamingCall<RouterMessage, ShardMessage> = (call) => {
    const session = new RouterSession(call, options, sessions);
    sessions.add(session);
  };
  server.addService(expertServiceDefinition, { connect });
  return () => {
    for (const session of sessions) session.end(status.UNAVAILABLE, "the shard is stopping");
  };
}

/** One router's stream. */
class RouterSession {
  readonly #call: Call;
  readonly #options: ExpertServiceOptions;
  readonly #sessions: Set<RouterSession>;
  readonly #helloTimer: NodeJS.Timeout;
  #routerId: string | undefined;
  /** Epoch of the last placement that this router sent; 0 before the first. */
  #epoch = 0;
  #open = true;

  constructor(call: Call, options: ExpertServiceOptions, sessions: Set<RouterSession>) {
    this.#call = call;
    this.#options = options;
    this.#sessions = sessions;
    this.#helloTimer = setTimeout(
      () => this.end(status.DEADLINE_EXCEEDED, `no hello within ${HELLO_TIMEOUT_MS} ms`),
      HELLO_TIMEOUT_MS,
    );
    call.on("data", (message: RouterMessage) => this.#receive(message));
    call.on("end", () => {
      this.#close("the router ended the stream");
      call.end();
    });
    call.on("cancelled", () => this.#close("the stream broke"));
    call.on("error", (error: Error) => this.#close(error.message));
  }

  /** Ends the stream with a status. */
  end(code: status, details: string): void {
    if (!this.#open) return;
    this.#close(details);
    this.#call.emit("error", { code, details });
  }

  #close(reason: string): void {
    if (!this.#open) return;
    this.#open = false;
    clearTimeout(this.#helloTimer);
    this.#sessions.delete(this);
    this.#options.batcher.cancelStream(this);
    if (this.#routerId !== undefined) {
      this.#options.logger.info({ router: this.#routerId, reason }, "router disconnected");
    }
  }

  #send(message: ShardMessage): void {
    if (this.#open) this.#call.write(message);
  }

  #receive({ kind }: RouterMessage): void {
    if (!this.#open) return;
    if (kind === undefined) {
      this.end(status.INVALID_ARGUMENT, "a message of an unknown kind");
    } else if (kind.$case === "hello") {
      this.#onHello(kind.value);
    } else if (this.#routerId === undefined) {
      this.end(status.FAILED_PRECONDITION, `the first message is ${kind.$case}, expected hello`);
    } else if (kind.$case === "placement") {
      void this.#onPlacement(kind.value);
    } else if (kind.$case === "dispatch") {
      this.#onDispatch(kind.value);
    } else if (kind.$case === "cancel") {
      this.#options.batcher.cancel(this, kind.value.dispatchId);
    }
  }

  #onHello(hello: RouterHello): void {
    if (this.#routerId !== undefined) {
      this.end(status.FAILED_PRECONDITION, "a second hello on one stream");
      return;
    }
    clearTimeout(this.#helloTimer);
    const { rank, modelHash, weights, experts, device, logger } = this.#options;
    const ours: ShardHello = {
      protocolVersion: PROTOCOL_VERSION,
      modelHash,
      weights,
      experts,
      rank,
      adapter: device.adapter,
      shaderF16: device.shaderF16,
      memoryBytes: device.memoryBytes,
      conformanceTolerance: device.tolerance(),
      incarnation: INCARNATION,
      pairsPerSecond: 0,
    };
    try {
      checkHellos(hello, ours);
    } catch (error) {
      const { code, details } = grpcStatusOf(error);
      logger.warn({ router: hello.routerId, reason: details }, "router refused");
      this.end(code, details);
      return;
    }
    this.#routerId = hello.routerId;
    logger.info({ router: hello.routerId }, "router connected");
    this.#send({ kind: { $case: "hello", value: ours } });
  }

  async #onPlacement(placement: ShardPlacement): Promise<void> {
    const { residency, logger } = this.#options;
    const shared = [...this.#sessions].some((other) => other !== this && other.#epoch > 0);
    try {
      const loaded = residency.apply(placement, shared);
      this.#epoch = placement.epoch;
      const ack = await loaded;
      logger.info({ router: this.#routerId, ...ack }, "placement resident");
      this.#send({ kind: { $case: "placementAck", value: ack } });
    } catch (error) {
      this.#epoch = 0;
      const { code, details } = grpcStatusOf(error);
      logger.error(
        { router: this.#routerId, epoch: placement.epoch, reason: details },
        "placement refused",
      );
      this.end(code, details);
      if (code !== status.FAILED_PRECONDITION) this.#options.onFailure(error as Error);
    }
  }

  #onDispatch(dispatch: Dispatch): void {
    const { model, batcher, rank, now } = this.#options;
    const { dispatchId, epoch, layer, numRows } = dispatch;
    const span = startDispatchSpan(dispatch, rank);
    const onError = (code: DispatchErrorCode, message: string) => {
      span?.fail(message);
      this.#send({ kind: { $case: "error", value: { dispatchId, code, message } } });
    };
    try {
      const payload = decodeDispatch(dispatch, {
        hiddenSize: model.hiddenSize,
        topK: model.numExpertsPerToken,
        maxRows: MAX_DISPATCH_ROWS,
      });
      if (epoch !== this.#epoch) {
        throw new DispatchRefusedError(
          DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH,
          `epoch ${epoch}: the router's placement on this stream is of epoch ${this.#epoch}`,
        );
      }
      const receivedAt = now();
      batcher.submit({
        stream: this,
        dispatchId,
        epoch,
        layer,
        payload,
        receivedAt,
        deadlineAt: receivedAt + dispatch.timeoutMs,
        onError,
        onSums: (sums, times) => {
          span?.end(times);
          const value = encodePartialSum(dispatchId, numRows, sums, times);
          this.#send({ kind: { $case: "partialSum", value } });
        },
      });
    } catch (error) {
      if (!(error instanceof DispatchRefusedError)) throw error;
      onError(error.code, error.message);
    }
  }
}
