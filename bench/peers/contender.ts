/** What is compared: something that continues prompts of token ids, greedily, and says how long it took. */

/** Prompts continued by so many tokens each, whatever those are: end-of-sequence ids count as any other. */
export interface Generation {
  /** [numPrompts][numTokens] */
  readonly tokenIds: readonly (readonly number[])[];
  /** From the request until every prompt has its first token, milliseconds. */
  readonly prefillMs: number;
  /** Tokens that came after that, as long as no prompt had all of its own; 0 where one token was asked for. */
  readonly decodedTokens: number;
  /** How long those took, milliseconds. */
  readonly decodeMs: number;
}

/** An open program with the model loaded. */
export interface Contender {
  /** What computes, as the program names it. */
  readonly device: string;
  /** Dtype of weights and, where it is known, what else matters for speed. */
  readonly details: string;
  /**
   * One call at a time. `tokenwise` prompts are computed token by token where the program can. Rejects where it fails or
   * does not answer in time.
   */
  generate(
    prompts: readonly (readonly number[])[],
    numTokens: number,
    tokenwise?: boolean,
  ): Promise<Generation>;
  close(): Promise<void>;
}

/** Room that a contender must have. */
export interface ContenderLimits {
  readonly maxStreams: number;
  /** Prompt and completion of one stream. */
  readonly maxStreamTokens: number;
}

/** A contender that can be opened. */
export interface Entrant {
  readonly name: string;
  /** Part of every golden's greedy ids, from the first on, that it must repeat: 1 is all; rounding may turn a close choice. */
  readonly repeats: number;
  /** Goldens' prompts are computed token by token, where its kernels for batches are not to be trusted. */
  readonly tokenwiseGoldens?: boolean;
  open(): Promise<Contender>;
}

/** A peer can not be had on this machine; the message says what is missing. */
export class PeerUnavailableError extends Error {
  override readonly name = "PeerUnavailableError";
}
