/** Where others reach a shard. */

import { networkInterfaces } from "node:os";

import { hostPort } from "../core/platform/service-options.ts";

/** Addresses that mean every interface of the machine. */
const ANY_HOST: ReadonlySet<string> = new Set(["0.0.0.0", "::", "[::]"]);

/** What --advertise says, else the address that is listened on; where that is every one, the machine's first that others can see. */
export function advertisedAddress(
  advertise: string | undefined,
  host: string,
  port: number,
): string {
  if (advertise !== undefined) return advertise;
  return hostPort(ANY_HOST.has(host) ? (outsideAddress() ?? "127.0.0.1") : host, port);
}

function outsideAddress(): string | undefined {
  const all = Object.values(networkInterfaces()).flatMap((of) => of ?? []);
  const outside = all.filter(({ internal }) => !internal);
  return (outside.find(({ family }) => family === "IPv4") ?? outside[0])?.address;
}
