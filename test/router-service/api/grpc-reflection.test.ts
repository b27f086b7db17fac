import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";
import { after, before, test } from "node:test";

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import {
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  type ServiceClientConstructor,
} from "@grpc/grpc-js";
import { loadFileDescriptorSetFromBuffer, loadSync } from "@grpc/proto-loader";

import { toyContinuation } from "../../support/toy-runner.ts";
import { type Doors, openDoors, VOCAB } from "./doors.ts";

const LIBRARY = path.dirname(createRequire(import.meta.url).resolve("@grpc/reflection"));

let doors: Doors;

before(async () => {
  doors = await openDoors();
});
after(() => doors.close());

/** The class of a service's clients out of a loaded package. */
function clientClass(packages: GrpcObject, name: string): ServiceClientConstructor {
  const found = name
    .split(".")
    .reduce<unknown>((scope, key) => (scope as GrpcObject)[key], packages);
  return found as ServiceClientConstructor;
}

/** One question to a version of the reflection service, as any gRPC tool asks it. */
async function reflect(version: "v1" | "v1alpha", question: object): Promise<Reflected> {
  const file = path.join(LIBRARY, `../proto/grpc/reflection/${version}/reflection.proto`);
  const packages = loadPackageDefinition(loadSync(file));
  const Reflection = clientClass(packages, `grpc.reflection.${version}.ServerReflection`);
  const client = new Reflection(doors.grpcAddress, credentials.createInsecure());
  try {
    const stream = client["serverReflectionInfo"]();
    stream.end(question);
    for await (const answer of stream) return answer as Reflected;
    throw new Error("reflection does not answer");
  } finally {
    client.close();
  }
}

interface Reflected {
  readonly listServicesResponse?: { readonly service: readonly { readonly name: string }[] };
  readonly fileDescriptorResponse?: { readonly fileDescriptorProto: readonly Buffer[] };
  readonly errorResponse?: { readonly errorCode: number };
}

async function filesOf(symbol: string): Promise<FileDescriptorProto[]> {
  const answer = await reflect("v1", { fileContainingSymbol: symbol });
  const files = answer.fileDescriptorResponse?.fileDescriptorProto ?? [];
  return files.map((bytes) => fromBinary(FileDescriptorProtoSchema, bytes));
}

for (const version of ["v1", "v1alpha"] as const) {
  test(`reflection ${version} lists what the router serves`, async () => {
    const { listServicesResponse } = await reflect(version, { listServices: "*" });
    assert.deepEqual(listServicesResponse?.service.map(({ name }) => name).toSorted(), [
      "grpc.health.v1.Health",
      "grpc.reflection.v1.ServerReflection",
      "grpc.reflection.v1alpha.ServerReflection",
      "switchyard.v1.InferenceService",
    ]);
  });
}

test("a client that knows nothing but reflection generates text", async () => {
  const name = "switchyard.v1.InferenceService";
  const files = await filesOf(name);
  assert.equal(files[0].name, "switchyard/v1/inference.proto");
  const set = toBinary(FileDescriptorSetSchema, {
    $typeName: "google.protobuf.FileDescriptorSet",
    file: files,
  });
  const packages = loadPackageDefinition(loadFileDescriptorSetFromBuffer(Buffer.from(set)));
  const client = new (clientClass(packages, name))(doors.grpcAddress, credentials.createInsecure());
  try {
    const request = { token_ids: { ids: [1, 2, 3] }, sampling: { max_tokens: 4 } };
    const response = await new Promise<{ token_ids: number[] }>((resolve, reject) => {
      client["generate"](request, (error: Error | null, value: { token_ids: number[] }) => {
        if (error) reject(error);
        else resolve(value);
      });
    });
    assert.deepEqual(response.token_ids, toyContinuation([1, 2, 3], 4, VOCAB));
  } finally {
    client.close();
  }
});

test("files are found by message, method and name, and what does not exist is an error", async () => {
  const byMessage = await filesOf("switchyard.v1.GenerateRequest");
  const byMethod = await filesOf("switchyard.v1.InferenceService.GenerateStream");
  assert.deepEqual(byMessage[0].name, byMethod[0].name);
  assert.ok((await filesOf("grpc.health.v1.Health")).length > 0);
  const byName = await reflect("v1", { fileByFilename: "switchyard/v1/inference.proto" });
  assert.equal(byName.fileDescriptorResponse?.fileDescriptorProto.length, 1);
  const nothing = await reflect("v1", { fileContainingSymbol: "switchyard.v1.Nothing" });
  assert.equal(nothing.errorResponse?.errorCode, 5);
});
