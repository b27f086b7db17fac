/** Who waits for experts that have no living copy, and who is refused. */

import { Lasting } from "./lasting.ts";

/** A shard may be started again at its place within this time, milliseconds; links break all together and come back. */
const PATIENCE_MS = 5_000;

/** How a cluster stands. */
export interface ClusterStanding {
  /** Which shards experts are without; undefined where every expert has a living copy. */
  readonly missing: string | undefined;
  /** A shard is there that is not to leave. */
  readonly staying: boolean;
  /** Such a shard is not in quarantine: plans are made with it. */
  readonly planned: boolean;
}

/**
 * What becomes of requests whose experts have no living copy. They wait where it may come back, each until its own
 * deadline; they end where shards stay and, for as long as patience goes, none has had room. New ones are refused then too, and
 * where no shard has stayed for as long: they would wait with the others. Before experts first had copies nobody waits.
 */
export class Availability {
  readonly #patienceMs: number;
  /** No shard that stays has room. */
  readonly #crowded: Lasting;
  /** No shard that stays has room, or none stays. */
  readonly #lost: Lasting;
  #standing: ClusterStanding = { missing: undefined, staying: false, planned: false };
  #unplaceable: string | undefined;
  #wasReady = false;

  /** `onChange` is called when patience is over. */
  constructor(onChange: () => void, patienceMs = PATIENCE_MS) {
    this.#patienceMs = patienceMs;
    this.#crowded = new Lasting(onChange);
    this.#lost = new Lasting(onChange);
  }

  /** Why no shard that stays has room for all experts, whether they have copies now or not; undefined where one has. */
  get unplaceable(): string | undefined {
    return this.#unplaceable;
  }

  /** Takes note of why no shard has room; undefined where that is over. */
  setUnplaceable(reason: string | undefined): void {
    this.#unplaceable = reason;
    this.#watch();
  }

  /** Takes note of how the cluster stands now. */
  note(standing: ClusterStanding): void {
    this.#standing = standing;
    this.#wasReady ||= standing.missing === undefined;
    this.#watch();
  }

  /** Why requests that run will not get their experts; undefined where they have them, or may wait for them. */
  hopeless(): string | undefined {
    const { missing } = this.#standing;
    if (missing === undefined || !this.#wasReady) return missing;
    return this.#crowded.holds ? this.#unplaceable : undefined;
  }

  /** Why new requests are to be refused; undefined where they are taken. */
  refusal(): string | undefined {
    return this.hopeless() ?? (this.#lost.holds ? this.#standing.missing : undefined);
  }

  close(): void {
    this.#crowded.end();
    this.#lost.end();
  }

  #watch(): void {
    const { missing, staying, planned } = this.#standing;
    const isMissing = this.#wasReady && missing !== undefined;
    const isCrowded = planned && this.#unplaceable !== undefined;
    this.#set(this.#crowded, isMissing && isCrowded);
    this.#set(this.#lost, isMissing && (!staying || isCrowded));
  }

  #set(lasting: Lasting, stands: boolean): void {
    if (stands) lasting.begin(this.#patienceMs);
    else lasting.end();
  }
}
