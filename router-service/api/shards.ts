/** The expert shards and how to have one leave: GET /v1/shards, POST and DELETE /v1/shards/{rank}/drain. */

import { LOCAL_RANK, rankName } from "../../core/placement/placement.ts";
import type { MemberView } from "../cluster/cluster-member.ts";
import { InvalidRequestError, UnavailableError } from "../engine/errors.ts";
import { NotFoundError } from "./api-errors.ts";
import { requireSource } from "./placement.ts";
import type { Serving } from "./serving.ts";

/** Every shard as this router knows it, by rank. Throws as requireSource. */
export function shardList(serving: Serving): object {
  const members = requireSource(serving).cluster.members();
  const byRank = [...members].sort((a, b) => (a.rank ?? Infinity) - (b.rank ?? Infinity));
  return { object: "list", shards: byRank.map(shardView) };
}

/**
 * Tells a shard that it is to leave, or to stay after all; which it does when its last copies have another home.
 * Throws InvalidRequestError for what is no rank, NotFoundError for a rank that no shard has, UnavailableError where it is away.
 */
export function drainShard(serving: Serving, rankText: string, cancel: boolean): object {
  if (!/^\d{1,5}$/.test(rankText)) {
    throw new InvalidRequestError(
      `rank: expected the number of a shard, got ${JSON.stringify(rankText.slice(0, 32))}`,
      "rank",
    );
  }
  const { cluster } = requireSource(serving);
  const rank = Number(rankText);
  // A router's own device is none of them.
  const members = cluster.members().filter((one) => one.rank !== LOCAL_RANK);
  const member = members.find((one) => one.rank === rank);
  if (member === undefined) {
    const ranks = members.flatMap((one) => one.rank ?? []).sort((a, b) => a - b);
    throw new NotFoundError(
      `rank: no shard has ${rank}, there are ${ranks.join(", ") || "none"}`,
      "shard_not_found",
      "rank",
    );
  }
  if (!cluster.drain(rank, cancel)) {
    throw new UnavailableError(`shard ${rank} is away: ${member.reason ?? "not connected"}`);
  }
  return { object: "shard", rank, draining: !cancel };
}

function shardView(member: MemberView): object {
  const { rank, address, state, reason, hello, status, speed, quarantinedUntil } = member;
  const draining = status?.draining ?? false;
  return {
    rank: rank === undefined ? null : rankName(rank),
    address,
    adapter: hello?.adapter ?? null,
    state,
    reason: reason ?? null,
    draining,
    released: status?.released ?? false,
    safe_to_terminate: draining && status?.released === true,
    quarantined_until:
      quarantinedUntil === undefined ? null : new Date(quarantinedUntil).toISOString(),
    epochs: status?.epochs ?? member.epochs,
    memory_bytes: hello?.memoryBytes ?? null,
    resident_bytes: status?.residentBytes ?? null,
    waiting: status?.waiting ?? null,
    rtt_seconds: speed.roundTripSeconds ?? null,
    bytes_per_second: speed.bytesPerSecond ?? null,
    seconds_per_pair: speed.secondsPerPair ?? null,
  };
}
