import assert from "node:assert/strict";
import { test } from "node:test";

import {
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  type ServiceClientConstructor,
  type ServiceError,
  status as grpcStatus,
} from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { protoPath } from "grpc-health-check";

import { waitFor } from "../../../bench/rig/wait-for.ts";
import { openDoors } from "./doors.ts";

const SERVICE = "switchyard.v1.InferenceService";

/** A probe as Kubernetes has it: the protocol's own definition and nothing of ours. */
function probe(address: string) {
  const packages = loadPackageDefinition(loadSync(protoPath, { enums: String }));
  const health = ((packages["grpc"] as GrpcObject)["health"] as GrpcObject)["v1"] as GrpcObject;
  const Health = health["Health"] as ServiceClientConstructor;
  return new Health(address, credentials.createInsecure());
}

test("a health check tells the state of this moment, a watch its changes", async () => {
  let reason: string | undefined;
  const doors = await openDoors({ api: { unavailableReason: () => reason, apiKey: "secret" } });
  const client = probe(doors.grpcAddress);
  const check = (service: string) =>
    new Promise<string>((resolve, reject) => {
      client["check"]({ service }, (error: ServiceError | null, value: { status: string }) => {
        if (error) reject(error);
        else resolve(value.status);
      });
    });
  try {
    const seen: string[] = [];
    const watch = client["watch"]({ service: SERVICE });
    watch.on("data", ({ status }: { status: string }) => seen.push(status));
    watch.on("error", () => undefined);
    await waitFor("the first state", () => seen.length === 1);
    assert.equal(await check(SERVICE), "SERVING");
    reason = "a shard is away";
    assert.equal(await check(SERVICE), "NOT_SERVING");
    assert.equal(await check(""), "NOT_SERVING");
    await waitFor("a change", () => seen.length === 2);
    reason = undefined;
    await waitFor("another change", () => seen.length === 3);
    assert.deepEqual(seen, ["SERVING", "NOT_SERVING", "SERVING"]);
    await assert.rejects(check("no.such.Service"), { code: grpcStatus.NOT_FOUND });
    watch.cancel();
  } finally {
    client.close();
    await doors.close();
  }
});
