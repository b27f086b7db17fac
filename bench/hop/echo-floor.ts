/** The least that a hop's wire can cost: round trips of one dispatch's bytes to echo processes on this machine. */

import { fork, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import path from "node:path";

import {
  credentials,
  makeGenericClientConstructor,
  type Client,
  type ClientDuplexStream,
} from "@grpc/grpc-js";

import { expertServiceDefinition } from "../../core/expert-stream.ts";
import { channelOptions } from "../../core/platform/grpc.ts";
import {
  WireDtype,
  type Dispatch,
  type RouterMessage,
  type ShardMessage,
} from "../../proto/gen/switchyard/v1/expert.ts";

const ECHO_SHARD = path.join(import.meta.dirname, "echo-shard.ts");

/** How long starting an echo process, and one round trip, may take, milliseconds. */
const DEADLINE_MS = 10_000;

/** Sizes of the message that a decode step of one sequence sends to one shard. */
export interface HopSizes {
  readonly numRows: number;
  readonly hiddenSize: number;
  readonly topK: number;
  readonly wire: "f16" | "f32";
}

/** A dispatch of these sizes, all zeros. */
export function emptyDispatch(sizes: HopSizes): Dispatch {
  const { numRows, hiddenSize, topK, wire } = sizes;
  return {
    dispatchId: 0,
    epoch: 1,
    layer: 0,
    timeoutMs: DEADLINE_MS,
    numRows,
    hiddenSize,
    topK,
    dtype: wire === "f16" ? WireDtype.WIRE_DTYPE_F16 : WireDtype.WIRE_DTYPE_F32,
    hiddenStates: new Uint8Array(numRows * hiddenSize * (wire === "f16" ? 2 : 4)),
    expertIds: new Uint8Array(numRows * topK * 2),
    topkWeights: new Uint8Array(numRows * topK * 4),
    crc32: 0,
    traceparent: "",
    rowScales: new Uint8Array(0),
  };
}

type EchoStream = ClientDuplexStream<RouterMessage, ShardMessage>;

/** Writes messages as a router does, so that the floor is that of its wire. */
const EchoClient = makeGenericClientConstructor(expertServiceDefinition, "ExpertService");

/** Echo processes, and a way to send each a dispatch and wait for all answers. */
export interface EchoShards {
  /** Milliseconds from sending one dispatch to every process to the last answer. */
  roundTrip(sizes: HopSizes): Promise<number>;
  close(): void;
}

/** Starts `count` echo processes and opens one stream to each. */
export async function startEchoShards(count: number): Promise<EchoShards> {
  const children: ChildProcess[] = [];
  const clients: Client[] = [];
  const streams: EchoStream[] = [];
  const close = () => {
    for (const stream of streams) stream.cancel();
    for (const client of clients) client.close();
    for (const child of children) child.kill("SIGKILL");
  };
  try {
    for (let i = 0; i < count; i++) {
      const child = fork(ECHO_SHARD);
      children.push(child);
      const signal = AbortSignal.timeout(DEADLINE_MS);
      const [{ port }] = (await once(child, "message", { signal })) as [{ port: number }];
      const address = `127.0.0.1:${port}`;
      const client = new EchoClient(address, credentials.createInsecure(), channelOptions);
      clients.push(client);
      const stream = (client.connect as () => EchoStream).call(client);
      // The stream ends with an error when it is cancelled.
      stream.on("error", () => undefined);
      streams.push(stream);
    }
  } catch (error) {
    close();
    throw error;
  }
  return {
    async roundTrip(sizes) {
      const value = emptyDispatch(sizes);
      const signal = AbortSignal.timeout(DEADLINE_MS);
      const startedAt = performance.now();
      const answers = streams.map((stream) => once(stream, "data", { signal }));
      for (const stream of streams) stream.write({ kind: { $case: "dispatch", value } });
      await Promise.all(answers);
      return performance.now() - startedAt;
    },
    close,
  };
}
