/** ExpertService: one stream per router, from its hello over its placement to its dispatches. */

import type { handleBidiStreamingCall, Server, ServerDuplexStream } from "@grpc/grpc-js";
import { status } from "@grpc/grpc-js";

import { startDispatchSpan } from "../core/dispatch-span.ts";
import { expertServiceDefinition } from "../core/expert-stream.ts";
import { OutOfDeviceMemoryError } from "../core/expert-device.ts";
import type { ExpertsSetting } from "../core/expert-formats.ts";
import { checkHellos, helloCrc, type WeightsSetting } from "../core/handshake.ts";
import type { ModelConfig } from "../core/model/config.ts";
import { grpcStatusOf } from "../core/platform/grpc.ts";
import type { Logger } from "../core/platform/log.ts";
import { contextOf } from "../core/platform/trace-context.ts";
import {
  decodeDispatch,
  DispatchRefusedError,
  encodePartialSum,
  MAX_DISPATCH_ROWS,
  PROTOCOL_VERSION,
  statusCrc,
} from "../core/wire.ts";
import type { ShardPlacement } from "../proto/gen/switchyard/v1/cluster.ts";
import type {
  Dispatch,
  FormatSpeed,
  ReleaseEpochs,
  RouterHello,
  RouterMessage,
  ShardHello,
  ShardMessage,
  ShardStatus,
} from "../proto/gen/switchyard/v1/expert.ts";
import type { DispatchErrorCode } from "../proto/gen/switchyard/v1/expert.ts";
import type { Batcher } from "./batcher.ts";
import type { ShardDevice } from "./device.ts";
import { createFetchExpert, type FetchExpertOptions } from "./fetch-expert.ts";
import { PlacementRefusedError, PlacementSupersededError } from "./placement-check.ts";
import type { Residency } from "./residency.ts";

/** A router that connects must say hello within this time. */
const HELLO_TIMEOUT_MS = 5_000;

/** A router that stops and one that is killed end their streams in the same ways. */
const STREAM_OVER = "the router closed the stream, or is gone";

/** Milliseconds between two words of the shard about itself. */
const STATUS_INTERVAL_MS = 1_000;

/** What the service needs of its shard. */
export interface ExpertServiceOptions {
  readonly rank: number;
  readonly model: ModelConfig;
  readonly modelHash: string;
  readonly weights: WeightsSetting;
  readonly experts: ExpertsSetting;
  readonly device: ShardDevice;
  readonly residency: Residency;
  /** A packed expert for another shard; undefined where the shard does not have it. */
  readonly read: FetchExpertOptions["read"];
  readonly batcher: Batcher;
  readonly logger: Logger;
  /** Milliseconds, monotonic; the batcher's clock. */
  readonly now: () => number;
  /** Tells this start of the process from others. */
  readonly incarnation: string;
  /** Experts of a step's row that the shard computes in a second; 0 where it was not measured. */
  readonly pairsPerSecond: number;
  /** The same by format; none where it was not measured. */
  readonly formatSpeeds: readonly FormatSpeed[];
  /** What the shard says of itself now; its messages each stream counts. */
  readonly status: () => ShardStanding;
  /** A router asks the shard to leave, or to stay after all. */
  readonly onDrain: (draining: boolean) => void;
  /** A router says why no shard that stays has room for what this one holds; empty: one has. */
  readonly onLeavingOutlook: (unplaceable: string) => void;
  /** A placement could not be loaded, and nothing else is served: the shard can not go on. */
  readonly onFailure: (error: Error) => void;
}

/** How a shard stands, to whichever router. */
export type ShardStanding = Omit<ShardStatus, "messagesRead" | "messagesSent" | "crc32">;

type Call = ServerDuplexStream<RouterMessage, ShardMessage>;

/** The service on a server. */
export interface ExpertService {
  /** Routers whose hello was taken. */
  numRouters(): number;
  /** Tells all routers the shard's status soon. */
  statusChanged(): void;
  /** Ends every stream with UNAVAILABLE. */
  close(): void;
}

/** Adds ExpertService to a server. */
export function addExpertService(server: Server, options: ExpertServiceOptions): ExpertService {
  const streams = new Set<RouterStream>();
  const connect: handleBidiStreamingCall<RouterMessage, ShardMessage> = (call) => {
    const stream = new RouterStream(call, options, streams);
    streams.add(stream);
  };
  const { modelHash, read } = options;
  const fetchExpert = createFetchExpert({ modelHash, read });
  server.addService(expertServiceDefinition, { connect, fetchExpert });
  const tell = () => {
    for (const stream of streams) stream.sendStatus();
  };
  const timer = setInterval(tell, STATUS_INTERVAL_MS);
  timer.unref();
  let soon: NodeJS.Immediate | undefined;
  return {
    numRouters: () => [...streams].filter(({ isGreeted }) => isGreeted).length,
    statusChanged: () => {
      soon ??= setImmediate(() => {
        soon = undefined;
        tell();
      });
    },
    close: () => {
      clearInterval(timer);
      clearImmediate(soon);
      for (const stream of streams) stream.end(status.UNAVAILABLE, "the shard is stopping");
    },
  };
}

/** Whether an error says that a placement does not fit, and nothing is wrong with the shard. */
function isRefusal(error: unknown): boolean {
  return error instanceof PlacementRefusedError || error instanceof OutOfDeviceMemoryError;
}

/** One router's stream. */
class RouterStream {
  readonly #call: Call;
  readonly #options: ExpertServiceOptions;
  readonly #streams: Set<RouterStream>;
  readonly #helloTimer: NodeJS.Timeout;
  #routerId: string | undefined;
  #messagesRead = 0;
  #messagesSent = 0;
  #open = true;

  constructor(call: Call, options: ExpertServiceOptions, streams: Set<RouterStream>) {
    this.#call = call;
    this.#options = options;
    this.#streams = streams;
    this.#helloTimer = setTimeout(
      () => this.end(status.DEADLINE_EXCEEDED, `no hello within ${HELLO_TIMEOUT_MS} ms`),
      HELLO_TIMEOUT_MS,
    );
    call.on("data", (message: RouterMessage) => this.#receive(message));
    call.on("end", () => {
      this.#close(STREAM_OVER);
      call.end();
    });
    call.on("cancelled", () => this.#close(STREAM_OVER));
    call.on("error", (error: Error) => this.#close(error.message));
  }

  /** The router's hello was taken, and the stream is open. */
  get isGreeted(): boolean {
    return this.#open && this.#routerId !== undefined;
  }

  /** Tells the router how the shard stands. */
  sendStatus(): void {
    if (!this.isGreeted) return;
    const messagesRead = this.#messagesRead;
    const messagesSent = this.#messagesSent + 1;
    const value = { ...this.#options.status(), messagesRead, messagesSent, crc32: 0 };
    value.crc32 = statusCrc(value);
    this.#send({ kind: { $case: "status", value } });
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
    this.#streams.delete(this);
    this.#options.batcher.cancelStream(this);
    this.#options.residency.leave(this);
    if (this.#routerId !== undefined) {
      this.#options.logger.info({ router: this.#routerId, reason }, "router disconnected");
    }
  }

  #send(message: ShardMessage): void {
    if (!this.#open) return;
    this.#messagesSent++;
    this.#call.write(message);
  }

  #receive({ kind }: RouterMessage): void {
    if (!this.#open) return;
    this.#messagesRead++;
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
    } else if (kind.$case === "release") {
      this.#onRelease(kind.value);
    } else if (kind.$case === "drain") {
      this.#options.onDrain(!kind.value.cancel);
    } else if (kind.$case === "leavingOutlook") {
      this.#options.onLeavingOutlook(kind.value.unplaceable);
    }
  }

  #onHello(hello: RouterHello): void {
    if (this.#routerId !== undefined) {
      this.end(status.FAILED_PRECONDITION, "a second hello on one stream");
      return;
    }
    clearTimeout(this.#helloTimer);
    const { rank, modelHash, weights, experts, device, logger } = this.#options;
    const { incarnation, pairsPerSecond, formatSpeeds } = this.#options;
    const ours = {
      protocolVersion: PROTOCOL_VERSION,
      modelHash,
      weights,
      experts,
      rank,
      adapter: device.adapter,
      shaderF16: device.shaderF16,
      memoryBytes: device.memoryBytes,
      conformanceTolerance: device.tolerance(),
      incarnation,
      pairsPerSecond,
      formatSpeeds: [...formatSpeeds],
      crc32: 0,
    } satisfies ShardHello;
    ours.crc32 = helloCrc(ours);
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
    this.sendStatus();
  }

  async #onPlacement(placement: ShardPlacement): Promise<void> {
    const { residency, logger, onFailure } = this.#options;
    const { epoch } = placement;
    try {
      const ack = await residency.apply(this, placement);
      if (!this.#open) return;
      logger.info({ router: this.#routerId, ...ack }, "placement resident");
      this.#send({ kind: { $case: "placementAck", value: ack } });
    } catch (error) {
      if (!this.#open) return;
      const { code, details } = grpcStatusOf(error);
      const supersededBy = error instanceof PlacementSupersededError ? error.by : 0;
      logger.warn({ router: this.#routerId, epoch, reason: details }, "placement refused");
      const damaged = error instanceof PlacementRefusedError && error.damaged;
      if (supersededBy > 0 || (residency.serves(this) && !damaged)) {
        const value = { epoch, reason: details, supersededBy };
        this.#send({ kind: { $case: "placementRefused", value } });
        return;
      }
      this.end(code, details);
      const serving = residency.epochs().length > 0;
      if (!serving && !isRefusal(error)) onFailure(error as Error);
    }
  }

  #onRelease({ oldestLiveEpoch, abandonedEpochs }: ReleaseEpochs): void {
    try {
      this.#options.residency.release(this, oldestLiveEpoch, abandonedEpochs);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.end(status.INVALID_ARGUMENT, error.message);
    }
  }

  #onDispatch(dispatch: Dispatch): void {
    const { model, batcher, rank, now } = this.#options;
    const { dispatchId, epoch, layer, numRows } = dispatch;
    const span = startDispatchSpan("shard", contextOf(dispatch.traceparent), {
      layer,
      rank,
      rows: numRows,
      epoch,
    });
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
      // At once, not when it is its turn.
      this.#options.residency.hold(epoch, layer);
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
          span?.end({ times });
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
