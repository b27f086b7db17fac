/** A gRPC client that knows nothing of the service beforehand: it asks the server's reflection, as grpcurl does. */

import { once } from "node:events";
import path from "node:path";

import {
  credentials,
  loadPackageDefinition,
  type Client,
  type ClientDuplexStream,
  type ClientReadableStream,
  type ServiceError,
} from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

const REFLECTION_PROTO = path.join(
  import.meta.dirname,
  "../../node_modules/@grpc/reflection/build/proto/grpc/reflection/v1/reflection.proto",
);

/** Deadline of one call, milliseconds. */
const TIMEOUT_MS = 30_000;

interface ReflectionRequest {
  readonly list_services?: string;
  readonly file_containing_symbol?: string;
}

interface ReflectionResponse {
  readonly list_services_response?: { readonly service: readonly { readonly name: string }[] };
  readonly file_descriptor_response?: { readonly file_descriptor_proto: readonly Buffer[] };
  readonly error_response?: { readonly error_code: number; readonly error_message: string };
}

type ClientClass = new (
  address: string,
  channel: ReturnType<typeof credentials.createInsecure>,
) => Client;

/** Follows the dots of a loaded package, as in "grpc.health.v1.Health". */
function serviceClass(definition: protoLoader.PackageDefinition, name: string): ClientClass {
  let node: unknown = loadPackageDefinition(definition);
  for (const part of name.split(".")) node = (node as Record<string, unknown>)[part];
  return node as ClientClass;
}

async function ask(address: string, request: ReflectionRequest): Promise<ReflectionResponse> {
  const definition = protoLoader.loadSync(REFLECTION_PROTO, { keepCase: true, longs: Number });
  const Reflection = serviceClass(definition, "grpc.reflection.v1.ServerReflection");
  const client = new Reflection(address, credentials.createInsecure());
  try {
    const open = (client as unknown as Record<string, unknown>).ServerReflectionInfo as (options: {
      deadline: number;
    }) => ClientDuplexStream<ReflectionRequest, ReflectionResponse>;
    const stream = open.call(client, { deadline: Date.now() + TIMEOUT_MS });
    stream.write(request);
    const [response] = (await once(stream, "data")) as [ReflectionResponse];
    stream.end();
    return response;
  } finally {
    client.close();
  }
}

/** Names of the services that the server's reflection lists. */
export async function listServices(address: string): Promise<string[]> {
  const response = await ask(address, { list_services: "" });
  return (response.list_services_response?.service ?? []).map(({ name }) => name);
}

/** Calls of a service by their names, with plain objects in and out (snake_case, as in the .proto). */
export interface ReflectedService {
  unary(method: string, request: object): Promise<Record<string, unknown>>;
  stream(method: string, request: object): ClientReadableStream<Record<string, unknown>>;
  close(): void;
}

/** A client of a service, made from the descriptors that the server's reflection gives. */
export async function reflectService(address: string, name: string): Promise<ReflectedService> {
  const response = await ask(address, { file_containing_symbol: name });
  const files = response.file_descriptor_response?.file_descriptor_proto;
  if (!files) throw new Error(`no descriptor of ${name}: ${JSON.stringify(response)}`);
  const definition = protoLoader.loadFileDescriptorSetFromBuffer(fileDescriptorSet(files), {
    keepCase: true,
    longs: Number,
    enums: String,
    defaults: true,
  });
  const Service = serviceClass(definition, name);
  const client = new Service(address, credentials.createInsecure());
  const methods = client as unknown as Record<string, (...args: unknown[]) => unknown>;
  const options = () => ({ deadline: Date.now() + TIMEOUT_MS });
  return {
    unary: (method, request) =>
      new Promise((resolve, reject) => {
        methods[method](
          request,
          options(),
          (error: ServiceError | null, answer: Record<string, unknown>) =>
            error ? reject(error) : resolve(answer),
        );
      }),
    stream: (method, request) =>
      methods[method](request, options()) as ClientReadableStream<Record<string, unknown>>,
    close: () => client.close(),
  };
}

/** The files as one FileDescriptorSet: field 1, length-delimited, once per file. */
function fileDescriptorSet(files: readonly Buffer[]): Buffer {
  return Buffer.concat(
    files.flatMap((file) => {
      const length: number[] = [];
      for (let rest = file.length; ; rest >>>= 7) {
        length.push(rest > 127 ? (rest & 127) | 128 : rest);
        if (rest <= 127) break;
      }
      return [Buffer.from([0x0a, ...length]), file];
    }),
  );
}
