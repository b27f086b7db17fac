/** Whether the messages of a stream arrive: both ends count them, and the shard says its counts once a second. */

import type { ShardStatus } from "../../../proto/gen/switchyard/v1/expert.ts";

/** While any are on their way, one more message is read within this time, and what all their bytes take at the rate below. */
const UNREAD_MS = 3_000;

/** The slowest link that is waited for. */
const LEAST_BYTES_PER_SECOND = 1 << 18;

/** Time that one count of the shard's stands for at most, milliseconds: a router that was busy reads several at once. */
const LONGEST_LOOK_MS = 1_500;

/** Messages that may be on their way: some seconds of them at any rate that a router has. */
const MAX_UNREAD = 1 << 17;

/** How long no message has been read though some are on their way. */
interface Wait {
  readonly messagesRead: number;
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
  #received = 0;
  /** Bytes of each that is not known to be read. */
  #unread: number[] = [];
  #wait: Wait | undefined;

  /** A message goes out, `bytes` long or so. Why it is one too many, if it is. */
  sent(bytes = 0): string | undefined {
    this.#sent++;
    if (this.#unread.push(bytes) <= MAX_UNREAD) return undefined;
    return `${this.#unread.length} messages are not known to be read, the limit is ${MAX_UNREAD}`;
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
    this.#unread.splice(0, this.#unread.length - (this.#sent - messagesRead));
    if (messagesRead === this.#sent) {
      this.#wait = undefined;
      return undefined;
    }
    if (this.#wait?.messagesRead !== messagesRead) {
      const bytes = this.#unread.reduce((sum, one) => sum + one, 0);
      const limitMs = UNREAD_MS + (1000 * bytes) / LEAST_BYTES_PER_SECOND;
      this.#wait = { messagesRead, limitMs, lookedAt: now, waitedMs: 0 };
      return undefined;
    }
    this.#wait.waitedMs += Math.min(LONGEST_LOOK_MS, now - this.#wait.lookedAt);
    this.#wait.lookedAt = now;
    const { waitedMs, limitMs } = this.#wait;
    if (waitedMs < limitMs) return undefined;
    const unread = `the shard has read ${messagesRead} of ${this.#sent} messages`;
    return `${unread}, no more for ${Math.round(waitedMs)} ms`;
  }
}
