/** grpc.health.v1 of the router: SERVING follows whether new requests are served. */

import type { Server } from "@grpc/grpc-js";
import { HealthImplementation, service, type ServingStatus } from "grpc-health-check";

type Check = (call: unknown, callback: unknown) => void;

const POLL_MS = 100;

/** Adds the health service to the server; returns what stops its watch of the reason. */
export function addHealthService(
  server: Server,
  services: readonly string[],
  unavailableReason: () => string | undefined,
): () => void {
  const names = ["", ...services];
  const statusNow = (): ServingStatus =>
    unavailableReason() === undefined ? "SERVING" : "NOT_SERVING";
  let last = statusNow();
  const health = new HealthImplementation(Object.fromEntries(names.map((name) => [name, last])));
  const refresh = () => {
    const now = statusNow();
    if (now === last) return;
    last = now;
    for (const name of names) health.setStatus(name, now);
  };
  health.addToServer({
    addService: (definition, handlers) => {
      // A check tells the state of this moment, not that of the last poll.
      const check: Check = (call, callback) => {
        refresh();
        (handlers["check"] as Check)(call, callback);
      };
      server.addService(definition, { ...handlers, check });
    },
  });
  const timer = setInterval(refresh, POLL_MS);
  timer.unref();
  return () => clearInterval(timer);
}

/** Descriptors of the health protocol, for reflection. */
export function healthDescriptors(): Buffer[] {
  return Object.values(service).flatMap((method) => {
    return "requestType" in method ? method.requestType.fileDescriptorProtos : [];
  });
}
