/** Whether the messages of a stream arrive: both ends count them, and the shard says its counts once a second. */

import type { ShardStatus } from "../../../proto/gen/switchyard/v1/expert.ts";

/** A message is read within this time, and what its bytes take at the rate below. */
const UNREAD_MS = 3_000;

/** The slowest link that is waited for. */
const LEAST_BYTES_PER_SECOND = 1 << 20;

/** Time that one count of the shard's stands for at most, milliseconds: a router that was busy reads several at once. */
const LONGEST_LOOK_MS = 1_500;

/** The last message that was on its way when the wait began, and how long it has been waited for. */
interface Wait {
  readonly message: number;
  readonly limitMs: number;
  lookedAt: number;
  waitedMs: number;
}

/**
 * Counts the messages of one stream. A flipped bit in the length before a message lets its reader wait for bytes that
 * are not sent, with the connection open and its pings answered; one in HTTP/2's own header may lose a message.
 */
export class MessageCounts {
  #sent = 0;
  #sentBytes = 0;
  #received = 0;
  /** Bytes of the messages that are known to be read, or are waited for. */
  #coveredBytes = 0;
  #wait: Wait | undefined;

  /** A message goes out, `bytes` long or so. */
  sent(bytes = 0): void {
    this.#sent++;
    this.#sentBytes += bytes;
  }

  /** A message came, of whatever kind. */
  received(): void {
    this.#received++;
  }

  /** Judges what the shard says, itself counted as received, at `now` milliseconds: why messages are lost, if they are. */
  judge({ messagesRead, messagesSent }: ShardStatus, now: number): string | undefined {
    if (messagesSent !== this.#received) {
      return `the shard has sent ${messagesSent} messages, ${this.#received} came`;
    }
    if (messagesRead > this.#sent) {
      return `the shard has read ${messagesRead} messages, ${this.#sent} were sent`;
    }
    if (this.#wait !== undefined && messagesRead < this.#wait.message) {
      this.#wait.waitedMs += Math.min(LONGEST_LOOK_MS, now - this.#wait.lookedAt);
      this.#wait.lookedAt = now;
      const { waitedMs, limitMs } = this.#wait;
      if (waitedMs < limitMs) return undefined;
      const unread = `the shard has read ${messagesRead} of ${this.#sent} messages`;
      return `${unread}, no more for ${Math.round(waitedMs)} ms`;
    }
    const bytes = this.#sentBytes - this.#coveredBytes;
    this.#coveredBytes = this.#sentBytes;
    const limitMs = UNREAD_MS + (1000 * bytes) / LEAST_BYTES_PER_SECOND;
    const wait = { message: this.#sent, limitMs, lookedAt: now, waitedMs: 0 };
    this.#wait = messagesRead < this.#sent ? wait : undefined;
    return undefined;
  }
}
