/** The shards of a cluster: who is named, who is there, and who has fallen silent. */

import {
  checkHelloCrc,
  checkHellos,
  checkTolerance,
  HandshakeError,
} from "../../core/handshake.ts";
import { LOCAL_RANK } from "../../core/placement/placement.ts";
import type { Logger } from "../../core/platform/log.ts";
import type { RouterHello, ShardHello } from "../../proto/gen/switchyard/v1/expert.ts";
import type { ClusterMember, MemberEvent } from "./cluster-member.ts";
import { type FirstPlacements, Member } from "./member.ts";

/** Milliseconds between two looks at who is silent. */
const WATCH_MS = 500;

/** What a roster needs. */
export interface RosterOptions {
  readonly hello: RouterHello;
  readonly logger: Logger;
  /** What a shard that says hello is told to hold first. */
  readonly placementsFor: (hello: ShardHello) => FirstPlacements;
  readonly onEvent: (member: ClusterMember, event: MemberEvent | "left") => void;
  /** The router's own device, where it is one of them. */
  readonly local?: ClusterMember;
}

/** Keeps shards connected. */
export class Roster {
  readonly #options: RosterOptions;
  readonly #members = new Map<string, Member>();
  readonly #leaving = new Set<Promise<void>>();
  readonly #watch: NodeJS.Timeout;
  #watchedAt = performance.now();
  #closed = false;

  constructor(options: RosterOptions) {
    this.#options = options;
    this.#watch = setInterval(() => this.#lookAround(), WATCH_MS);
    this.#watch.unref();
  }

  /** In the order in which they were named, the router's own device last. */
  get members(): ClusterMember[] {
    const { local } = this.#options;
    return [...this.#members.values(), ...(local ? [local] : [])];
  }

  /** Whether any shard beside the router's own device is there that is not to leave. */
  get hasStaying(): boolean {
    return this.#members.values().some(({ connected, draining }) => connected && !draining);
  }

  /** Whether any such shard is not in quarantine. */
  get hasPlanned(): boolean {
    return this.#members
      .values()
      .some(({ connected, draining, quarantined }) => connected && !draining && !quarantined);
  }

  /** The shard of a rank; the connected one where an address that it had before is still named. */
  find(rank: number): ClusterMember | undefined {
    if (rank === LOCAL_RANK) return this.#options.local;
    let found: Member | undefined;
    for (const member of this.#members.values()) {
      if (member.rank === rank && !found?.connected) found = member;
    }
    return found;
  }

  /** Connects to shards at new addresses, lets go of those that are not named, keeps the others. */
  set(addresses: readonly string[]): void {
    if (this.#closed) return;
    const wanted = new Set(addresses);
    for (const [address, member] of this.#members) {
      if (wanted.has(address)) continue;
      this.#members.delete(address);
      const gone = member.close("the shard is no member any more");
      this.#leaving.add(gone);
      void gone.finally(() => this.#leaving.delete(gone));
      this.#options.onEvent(member, "left");
    }
    for (const address of wanted) {
      if (this.#members.has(address)) continue;
      const { hello, logger, onEvent } = this.#options;
      const judge = (one: Member, theirs: ShardHello) => this.#judge(one, theirs);
      this.#members.set(address, new Member({ address, hello, logger, judge, onEvent }));
    }
  }

  /** Tells the shards that are to leave why no other has room for what they hold; undefined: one has. */
  tellLeaving(unplaceable: string | undefined): void {
    for (const member of this.#members.values()) member.tellLeaving(unplaceable ?? "");
  }

  async close(): Promise<void> {
    this.#closed = true;
    clearInterval(this.#watch);
    await Promise.all(this.members.map((member) => member.close()));
    await Promise.all(this.#leaving);
  }

  #judge(member: Member, hello: ShardHello): FirstPlacements {
    checkHellos(this.#options.hello, hello);
    checkHelloCrc(hello);
    checkTolerance(hello.conformanceTolerance);
    for (const other of this.#members.values()) {
      if (other !== member && other.connected && other.rank === hello.rank) {
        throw new HandshakeError(`rank ${hello.rank}: shard ${other.address} has it too`);
      }
    }
    return this.#options.placementsFor(hello);
  }

  #lookAround(): void {
    const now = performance.now();
    const late = now - this.#watchedAt > 1.5 * WATCH_MS;
    this.#watchedAt = now;
    // This process was away itself: what shards said meanwhile is still to be read.
    if (late) return;
    for (const member of this.#members.values()) member.checkSilence();
  }
}
