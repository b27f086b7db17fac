/** A health probe as an orchestrator sends it: grpc.health.v1 over plain grpc-js. */

import path from "node:path";

import { credentials, loadPackageDefinition, type Client, type ServiceError } from "@grpc/grpc-js";
import * as protoLoader from "@grpc/proto-loader";

const HEALTH_PROTO = path.join(
  import.meta.dirname,
  "../../node_modules/grpc-health-check/proto/health/v1/health.proto",
);

type Check = (
  request: { readonly service: string },
  options: { readonly deadline: number },
  callback: (error: ServiceError | null, answer: { readonly status: string }) => void,
) => void;

/** Status of a service ("" is the whole server): "SERVING" or "NOT_SERVING". Rejects with the call's error. */
export async function healthStatus(address: string, service: string): Promise<string> {
  const definition = protoLoader.loadSync(HEALTH_PROTO, { enums: String });
  const { grpc } = loadPackageDefinition(definition) as unknown as {
    grpc: {
      health: {
        v1: {
          Health: new (
            address: string,
            channel: ReturnType<typeof credentials.createInsecure>,
          ) => Client & { check: Check };
        };
      };
    };
  };
  const client = new grpc.health.v1.Health(address, credentials.createInsecure());
  try {
    return await new Promise((resolve, reject) => {
      client.check({ service }, { deadline: Date.now() + 5000 }, (error, answer) =>
        error ? reject(error) : resolve(answer.status),
      );
    });
  } finally {
    client.close();
  }
}
