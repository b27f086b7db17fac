/** gRPC as every process here uses it: options of both ends, promise helpers, and which error is which status. */

import type { Socket } from "node:net";

import type {
  ChannelCredentials,
  ChannelOptions,
  ClientOptions,
  Server,
  ServerOptions,
} from "@grpc/grpc-js";
import { Channel, credentials, ServerCredentials, status } from "@grpc/grpc-js";

import { listenError } from "./listening.ts";

/** Largest message of any service, bytes; both ends set it. */
export const MAX_MESSAGE_BYTES = 256 * 1024 * 1024;

/** Flow-control window: a large dispatch need not wait for window updates, bytes. */
const FLOW_CONTROL_WINDOW = 16 * 1024 * 1024;

const sharedOptions = {
  "grpc.max_receive_message_length": MAX_MESSAGE_BYTES,
  "grpc.max_send_message_length": MAX_MESSAGE_BYTES,
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
} satisfies ChannelOptions;

/** A channel that stays closed: grpc-js tells of an IP address a turn later, also to one that was closed meanwhile. */
function closableChannel(...settings: ConstructorParameters<typeof Channel>): Channel {
  const channel = new Channel(...settings);
  const close = channel.close.bind(channel);
  channel.close = () => {
    close();
    // After that turn, and before a socket can have connected.
    setImmediate(close);
  };
  return channel;
}

/** Options of every client channel: no retries (callers decide), no sharing of connections, no proxy. */
export const channelOptions: ClientOptions = {
  ...sharedOptions,
  "grpc.keepalive_permit_without_calls": 1,
  "grpc.enable_retries": 0,
  "grpc.use_local_subchannel_pool": 1,
  "grpc.enable_http_proxy": 0,
  "grpc.service_config_disable_resolution": 1,
  "grpc-node.flow_control_window": FLOW_CONTROL_WINDOW,
  channelFactoryOverride: closableChannel,
};

type SecureConnector = ReturnType<ChannelCredentials["_createSecureConnector"]>;

/**
 * Credentials of every client channel, without TLS: nothing of a client is left when it is closed. By itself grpc-js
 * would connect once more, and for good, where it waits after an attempt that failed, and keep a connection to a
 * server that does not answer.
 */
export function channelCredentials(): ChannelCredentials {
  const insecure = credentials.createInsecure();
  const create = insecure._createSecureConnector.bind(insecure);
  insecure._createSecureConnector = (...settings) => closable(create(...settings));
  return insecure;
}

/** Connects until it is destroyed: nobody uses its connections from then on, but for the calls that have begun. */
function closable(connector: SecureConnector): SecureConnector {
  let isDestroyed = false;
  let last: Socket | undefined;
  return {
    getCallCredentials: () => connector.getCallCredentials(),
    waitForReady: async () => {
      if (isDestroyed) throw new Error("the client is closed");
      await connector.waitForReady();
    },
    connect: async (socket) => {
      // Closed while the socket connected: whoever waits destroys it.
      if (isDestroyed) throw new Error("the client is closed");
      last = socket;
      return connector.connect(socket);
    },
    destroy: () => {
      isDestroyed = true;
      // No call can have begun where the server has not said a word.
      if (last?.bytesRead === 0) last.destroy();
      connector.destroy();
    },
  };
}

/** Options of every server. */
export const serverOptions: ServerOptions = sharedOptions;

/**
 * Binds a server without TLS and returns its port (chosen where `address` ends in ":0"). Rejects with ListenError
 * where the address is taken, which names `portFlag`.
 */
export function bindServer(server: Server, address: string, portFlag = "--port"): Promise<number> {
  return new Promise((resolve, reject) => {
    server.bindAsync(address, ServerCredentials.createInsecure(), (error, port) => {
      if (error) reject(listenError(address, portFlag, error.message));
      else resolve(port);
    });
  });
}

/** Stops a server: lets calls end for `graceMs`, then breaks them and waits for no peer. */
export function stopServer(server: Server, graceMs: number): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(() => {
      server.forceShutdown();
      // Node closes a connection only when the peer closes its end, which a frozen one never does.
      resolve();
    }, graceMs);
    server.tryShutdown(() => {
      clearTimeout(timer);
      resolve();
    });
  });
}

/** gRPC status code of each error, by its name; errors stand beside what throws them. */
const statusByErrorName: Readonly<Record<string, status>> = {
  AbortError: status.CANCELLED,
  InvalidRequestError: status.INVALID_ARGUMENT,
  ChatTemplateError: status.INVALID_ARGUMENT,
  TransportError: status.INVALID_ARGUMENT,
  NoTokenizerError: status.FAILED_PRECONDITION,
  UnauthenticatedError: status.UNAUTHENTICATED,
  NotFoundError: status.NOT_FOUND,
  ClientGoneError: status.CANCELLED,
  QueueFullError: status.RESOURCE_EXHAUSTED,
  OutOfDeviceMemoryError: status.RESOURCE_EXHAUSTED,
  UnavailableError: status.UNAVAILABLE,
  ShardLostError: status.UNAVAILABLE,
  DispatchFailedError: status.UNAVAILABLE,
  DispatchTimeoutError: status.UNAVAILABLE,
  RequestTimeoutError: status.DEADLINE_EXCEEDED,
  HandshakeError: status.FAILED_PRECONDITION,
  PlacementRefusedError: status.FAILED_PRECONDITION,
};

/** What a gRPC call ends with. */
export interface GrpcStatus {
  readonly code: status;
  readonly details: string;
}

/** The status that an error ends a call with: INTERNAL where the table does not have it. */
export function grpcStatusOf(error: unknown): GrpcStatus {
  if (!(error instanceof Error)) return { code: status.INTERNAL, details: String(error) };
  return { code: statusByErrorName[error.name] ?? status.INTERNAL, details: error.message };
}
