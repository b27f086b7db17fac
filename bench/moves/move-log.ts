/** What the processes of a cluster log of moves, kept for as long as a run lasts. */

import { adoptionsIn, isOfAdoption, type Span } from "./spans.ts";

/** Hears what processes write, and keeps what is of moves. */
export class MoveLog {
  readonly #adoptions: string[] = [];
  /** Of each shard, by its name: bytes read from its checkpoint when it first had a placement, and by now. */
  readonly #reads = new Map<string, { readonly first: number; readonly last: number }>();

  /** A line that a process wrote. */
  hear(name: string, line: string): void {
    if (isOfAdoption(line)) this.#adoptions.push(line);
    if (!line.includes('"placement resident"')) return;
    const { checkpointBytesRead: last } = JSON.parse(line) as { checkpointBytesRead: number };
    this.#reads.set(name, { first: this.#reads.get(name)?.first ?? last, last });
  }

  /** The times in which a router had shards load a placement and went to it; `origin` as for `adoptionsIn`. */
  adoptions(origin: number): Span[] {
    return adoptionsIn(this.#adoptions, origin);
  }

  /** Bytes that a shard has read from its checkpoint since it first had a placement. */
  bytesRead(name: string): number {
    const { first, last } = this.#reads.get(name) ?? { first: 0, last: 0 };
    return last - first;
  }
}
