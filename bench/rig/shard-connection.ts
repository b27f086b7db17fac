/** A router's stream to a shard, message by message or byte by byte, for those who say what no router says. */

import type { ClientDuplexStream, ServiceDefinition, StatusObject } from "@grpc/grpc-js";
import { credentials, makeGenericClientConstructor } from "@grpc/grpc-js";

import type { Checkpoint } from "../../core/model/checkpoint/checkpoint.ts";
import { moeLayers } from "../../core/model/config.ts";
import { channelOptions } from "../../core/platform/grpc.ts";
import { encodeDispatch, placementCrc, PROTOCOL_VERSION } from "../../core/wire.ts";
import type { ShardPlacement } from "../../proto/gen/switchyard/v1/cluster.ts";
import {
  ExpertServiceService,
  RouterMessage,
  type Dispatch,
  type RouterHello,
  type ShardMessage,
  type ShardStatus,
} from "../../proto/gen/switchyard/v1/expert.ts";
import { packRows } from "../../core/wire-rows.ts";
import { testValues } from "./expert-reference.ts";

type Kind = NonNullable<ShardMessage["kind"]>;

/** An answer of this kind. */
export type AnswerOf<C extends Kind["$case"]> = Extract<Kind, { $case: C }>["value"];

/** An open stream. */
export interface ShardConnection {
  send(kind: NonNullable<RouterMessage["kind"]>): void;
  sendBytes(bytes: Uint8Array): void;
  /** The next message, which is to be of this kind. Rejects on another, when the stream ends, or after 5 s. */
  next<C extends Kind["$case"]>(kind: C): Promise<AnswerOf<C>>;
  /** The next message of any kind, or how the stream ended. */
  nextOrEnd(): Promise<Kind | StatusObject>;
  /** How the stream ended. */
  readonly ended: Promise<StatusObject>;
  /** What the shard last said of itself; it says so between other messages, which do not count it. */
  status(): ShardStatus | undefined;
  close(): void;
}

const RawClient = makeGenericClientConstructor(
  {
    connect: {
      ...ExpertServiceService.connect,
      requestSerialize: (bytes: Buffer) => bytes,
      requestDeserialize: (bytes: Buffer) => bytes,
    },
  } satisfies ServiceDefinition,
  "ExpertService",
);

/** Opens a stream to a shard. */
export function openShardConnection(address: string): ShardConnection {
  const client = new RawClient(address, credentials.createInsecure(), channelOptions);
  const call = (client.connect as () => ClientDuplexStream<Buffer, ShardMessage>).call(client);
  const arrived: Kind[] = [];
  let status: ShardStatus | undefined;
  let wake = () => {};
  let end: StatusObject | undefined;
  const { promise: ended, resolve } = Promise.withResolvers<StatusObject>();
  call.on("data", ({ kind }: ShardMessage) => {
    if (kind?.$case === "status") status = kind.value;
    else if (kind) arrived.push(kind);
    wake();
  });
  call.on("error", () => {});
  call.on("status", (final: StatusObject) => {
    end = final;
    resolve(final);
    client.close();
    wake();
  });
  const nextOrEnd = async (): Promise<Kind | StatusObject> => {
    const deadline = performance.now() + 5000;
    for (;;) {
      const message = arrived.shift();
      if (message) return message;
      if (end) return end;
      const { promise, resolve: resume } = Promise.withResolvers<void>();
      wake = resume;
      const timer = setTimeout(resume, deadline - performance.now());
      await promise;
      clearTimeout(timer);
      if (performance.now() >= deadline) throw new Error("no message within 5 s");
    }
  };
  const sendBytes = (bytes: Uint8Array) => void call.write(Buffer.from(bytes));
  return {
    send: (kind) => sendBytes(RouterMessage.encode({ kind }).finish()),
    sendBytes,
    async next(kind) {
      const message = await nextOrEnd();
      if ("$case" in message && message.$case === kind) {
        return message.value as AnswerOf<typeof kind>;
      }
      throw new Error(`expected ${kind}, got ${JSON.stringify(message)}`);
    },
    nextOrEnd,
    ended,
    status: () => status,
    close: () => call.cancel(),
  };
}

/** A hello that fits the checkpoint. */
export function helloFor(checkpoint: Checkpoint, change: Partial<RouterHello> = {}): RouterHello {
  return {
    protocolVersion: PROTOCOL_VERSION,
    modelHash: checkpoint.modelHash,
    weights: "f32",
    experts: "auto",
    routerId: "test",
    ...change,
  };
}

/** A placement of these experts in every MoE layer, weights f32, with its checksum. */
export function placementOf(
  checkpoint: Checkpoint,
  expertIds: readonly number[],
  change: Partial<ShardPlacement> = {},
): ShardPlacement {
  const placement: ShardPlacement = {
    epoch: 1,
    weights: 2,
    expertFormat: 1,
    layers: moeLayers(checkpoint.config).map((layer) => ({
      layer,
      experts: expertIds.map((expertId) => ({ expertId, splitWeight: 1, format: 0 })),
    })),
    oldestLiveEpoch: 1,
    peers: [],
    crc32: 0,
    ...change,
  };
  return { ...placement, crc32: placementCrc(placement) };
}

/** A dispatch of the tiny model's sizes: `expertIds` has four for each row. */
export function dispatchOf(
  expertIds: readonly number[],
  change: {
    readonly dispatchId?: number;
    readonly epoch?: number;
    readonly layer?: number;
    readonly timeoutMs?: number;
    readonly traceparent?: string;
  } = {},
): Dispatch {
  const numRows = expertIds.length / 4;
  return encodeDispatch(
    {
      dispatchId: 1,
      epoch: 1,
      layer: 0,
      timeoutMs: 5000,
      hiddenSize: 64,
      topK: 4,
      traceparent: "",
      ...change,
    },
    {
      rows: packRows(testValues(numRows * 64, 5), 64, "f32"),
      expertIds: Uint16Array.from(expertIds),
      topkWeights: testValues(numRows * 4, 6).map(Math.abs),
    },
  );
}

/** Opens a stream, says hello and places these experts. */
export async function placedConnection(
  address: string,
  checkpoint: Checkpoint,
  expertIds: readonly number[],
  change: Partial<ShardPlacement> = {},
  hello: Partial<RouterHello> = {},
): Promise<ShardConnection> {
  const connection = openShardConnection(address);
  connection.send({ $case: "hello", value: helloFor(checkpoint, hello) });
  await connection.next("hello");
  connection.send({ $case: "placement", value: placementOf(checkpoint, expertIds, change) });
  await connection.next("placementAck");
  return connection;
}
