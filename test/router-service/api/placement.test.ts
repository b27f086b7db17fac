import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";

import { LOCAL_RANK } from "../../../core/placement/placement.ts";
import type { PlacementSource } from "../../../router-service/api/placement-source.ts";
import type { MemberView } from "../../../router-service/cluster/cluster-member.ts";
import { openDoors, type DoorOptions } from "./doors.ts";

async function doorsOf(t: TestContext, api: DoorOptions["api"] = {}) {
  const doors = await openDoors({ api });
  t.after(() => doors.close(0));
  return doors;
}

const ROUTES = [
  ["GET", "/v1/placement"],
  ["POST", "/v1/placement/plan"],
  ["GET", "/v1/shards"],
  ["POST", "/v1/shards/0/drain"],
  ["DELETE", "/v1/shards/0/drain"],
] as const;

async function call(url: string, [method, route]: readonly [string, string], key?: string) {
  const response = await fetch(`${url}${route}`, {
    method,
    headers: {
      ...(key !== undefined && { authorization: `Bearer ${key}` }),
      ...(route.endsWith("/plan") && { "content-type": "application/json" }),
    },
    ...(route.endsWith("/plan") && { body: "{}" }),
    signal: AbortSignal.timeout(5_000),
  });
  const body = (await response.json()) as { readonly error: { readonly code: string | null } };
  return [response.status, body.error.code] as const;
}

test("a router without shards says so on every route of shards and placement", async (t) => {
  const { url } = await doorsOf(t);
  for (const route of ROUTES) assert.deepEqual(await call(url, route), [404, "no_shards"]);
});

test("a router that starts has no placement yet, and says so with 503", async (t) => {
  const { url } = await doorsOf(t, { placement: () => undefined });
  for (const route of ROUTES) assert.equal((await call(url, route))[0], 503);
});

test("shards and placement are asked for with the key, as all else", async (t) => {
  const { url } = await doorsOf(t, { apiKey: "secret" });
  for (const route of ROUTES) {
    assert.equal((await call(url, route))[0], 401);
    assert.equal((await call(url, route, "wrong"))[0], 401);
    assert.equal((await call(url, route, "secret"))[0], 404);
  }
});

test("another method on a shard's drain is refused with those that there are", async (t) => {
  const { url } = await doorsOf(t);
  const response = await fetch(`${url}/v1/shards/0/drain`, { signal: AbortSignal.timeout(5_000) });
  await response.body?.cancel();
  assert.equal(response.status, 405);
  assert.equal(response.headers.get("allow"), "POST, DELETE");
});

test("a router's own device is listed as rank local, and is no shard that could leave", async (t) => {
  const members = [1, LOCAL_RANK].map((rank): MemberView => ({
    address: `address of ${rank}`,
    rank,
    state: "ready",
    reason: undefined,
    hello: undefined,
    status: undefined,
    epochs: [],
    speed: {} as MemberView["speed"],
    steady: {} as MemberView["steady"],
    suspect: false,
    quarantinedUntil: undefined,
  }));
  const cluster: Partial<PlacementSource["cluster"]> = { members: () => members };
  const source = { cluster } as PlacementSource;
  const doors = await doorsOf(t, { placement: () => source });
  const { shards } = (await doors.get("/v1/shards")).body as {
    readonly shards: readonly { readonly rank: unknown }[];
  };
  assert.deepEqual(
    shards.map(({ rank }) => rank),
    [1, "local"],
  );
  for (const rank of [LOCAL_RANK, 7]) {
    const { status, body } = await doors.post(`/v1/shards/${rank}/drain`, {});
    const { error } = body as { readonly error: { readonly message: string } };
    assert.deepEqual([status, error.message], [404, `rank: no shard has ${rank}, there are 1`]);
  }
});
