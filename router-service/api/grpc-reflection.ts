/** Server reflection, v1 and v1alpha, from the descriptor set that `buf build` writes. */

import { readFileSync } from "node:fs";

import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import type { Server } from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";

import { healthDescriptors } from "./grpc-health.ts";

type Package = ConstructorParameters<typeof ReflectionService>[0];
type Definition = Parameters<Server["addService"]>[0];

const DESCRIPTOR_SET = new URL("../../proto/gen/descriptor.binpb", import.meta.url);

/** Adds reflection that lists the given services, health and itself. */
export function addReflectionService(server: Server, services: readonly string[]): void {
  const files = fromBinary(FileDescriptorSetSchema, readFileSync(DESCRIPTOR_SET)).file;
  const ours = files.map((file) => Buffer.from(toBinary(FileDescriptorProtoSchema, file)));
  const reflection = new ReflectionService(
    packageOf([...ours, ...healthDescriptors(), ...ownDescriptors()]),
    {
      services: [
        ...services,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
      ],
    },
  );
  reflection.addToServer(server);
}

/** The one thing that the library reads of a package: encoded file descriptors. */
function packageOf(fileDescriptorProtos: readonly Buffer[]): Package {
  const files = [...fileDescriptorProtos];
  return {
    files: { format: "Protocol Buffer 3 DescriptorProto", type: {}, fileDescriptorProtos: files },
  };
}

/** Descriptors of the reflection protocol itself, out of the definitions that it registers. */
function ownDescriptors(): Buffer[] {
  const found: Buffer[] = [];
  const collect = (definition: Definition) => {
    for (const method of Object.values(definition) as {
      requestType?: { fileDescriptorProtos: Buffer[] };
    }[]) {
      found.push(...(method.requestType?.fileDescriptorProtos ?? []));
    }
  };
  new ReflectionService(packageOf([])).addToServer({ addService: collect });
  return found;
}
