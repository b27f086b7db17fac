/** Experts fetched from other shards: packed as they lie there, checked byte by byte. */

import { crc32 } from "node:zlib";

import type { ClientReadableStream, StatusObject } from "@grpc/grpc-js";
import { makeGenericClientConstructor, status } from "@grpc/grpc-js";

import type { ExpertSizes } from "../core/expert-device.ts";
import type { ExpertFormat, PackedExpert } from "../core/expert-format.ts";
import { expertServiceDefinition } from "../core/expert-stream.ts";
import { formatToWire } from "../core/format-message.ts";
import { expertOf } from "../core/packed-bytes.ts";
import { channelCredentials, channelOptions } from "../core/platform/grpc.ts";
import { expertBytes } from "../core/weights.ts";
import { fetchCrc } from "../core/wire.ts";
import type { ExpertChunk, FetchExpertRequest } from "../proto/gen/switchyard/v1/expert.ts";
import { fetchTimeoutMs } from "./fetch-expert.ts";

const ExpertClient = makeGenericClientConstructor(expertServiceDefinition, "ExpertService");

type Client = InstanceType<typeof ExpertClient>;
type FetchExpert = (
  request: FetchExpertRequest,
  options: { readonly deadline: Date },
) => ClientReadableStream<ExpertChunk>;

/** A peer did not give an expert, or not unharmed. */
export class PeerError extends Error {
  override readonly name = "PeerError";
  /** It may give the expert later: others take its time. */
  readonly busy: boolean;
  constructor(message: string, busy: boolean, options?: ErrorOptions) {
    super(message, options);
    this.busy = busy;
  }
}

/** What a peer answers that gives too many experts already, or was too slow over this one. */
const BUSY: ReadonlySet<number | undefined> = new Set([
  status.RESOURCE_EXHAUSTED,
  status.DEADLINE_EXCEEDED,
]);

/** One expert of the model in a format. */
export interface WantedExpert {
  readonly layer: number;
  readonly expert: number;
  readonly format: ExpertFormat;
}

/** What fetching needs. */
export interface PeerExpertsOptions {
  readonly modelHash: string;
  readonly sizes: ExpertSizes;
}

/** Connections to peers, made when they are needed. */
export class PeerExperts {
  readonly #options: PeerExpertsOptions;
  readonly #clients = new Map<string, Client>();

  constructor(options: PeerExpertsOptions) {
    this.#options = options;
  }

  /** Fetches an expert. Rejects with PeerError, naming the peer and what is wrong, or the signal's reason. */
  async fetch(
    address: string,
    { layer, expert, format }: WantedExpert,
    signal: AbortSignal,
  ): Promise<PackedExpert> {
    const { modelHash, sizes } = this.#options;
    const request = { modelHash, layer, expertId: expert, format: formatToWire(format) };
    const size = expertBytes(sizes, format);
    const deadline = new Date(Date.now() + fetchTimeoutMs(size));
    const client = this.#client(address);
    const call = (client.fetchExpert as FetchExpert).call(client, request, { deadline });
    const cancel = () => call.cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      return expertOf(sizes, format, await collect(call, request, size));
    } catch (error) {
      signal.throwIfAborted();
      const { code, details, message } = error as Error & Partial<StatusObject>;
      const what = `layer ${layer} expert ${expert} in ${format}`;
      throw new PeerError(`peer ${address}, ${what}: ${details || message}`, BUSY.has(code));
    } finally {
      signal.removeEventListener("abort", cancel);
      call.cancel();
    }
  }

  /** Closes all connections; the next fetch makes its own. */
  rest(): void {
    for (const client of this.#clients.values()) client.close();
    this.#clients.clear();
  }

  #client(address: string): Client {
    let client = this.#clients.get(address);
    if (client === undefined) {
      client = new ExpertClient(address, channelCredentials(), channelOptions);
      this.#clients.set(address, client);
    }
    return client;
  }
}

/** The bytes of all chunks. Throws where they are not `size`, or not what the peer sent. */
async function collect(
  call: AsyncIterable<ExpertChunk>,
  request: FetchExpertRequest,
  size: number,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(size);
  let crc = fetchCrc(request);
  let at = 0;
  let stated: number | undefined;
  for await (const { data, totalBytes, crc32: last } of call) {
    if (at === 0 && totalBytes !== size) {
      throw new Error(`${totalBytes} bytes in all, expected ${size}`);
    }
    if (at + data.length > size) throw new Error(`more than ${size} bytes`);
    bytes.set(data, at);
    crc = crc32(data, crc);
    at += data.length;
    if (at === size) stated = last;
  }
  if (at !== size) throw new Error(`${at} bytes, expected ${size}`);
  if (crc !== stated) {
    throw new Error(`crc32 is ${crc.toString(16)}, it states ${(stated ?? 0).toString(16)}`);
  }
  return bytes;
}
