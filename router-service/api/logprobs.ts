/** Log-probabilities in the formats of chat, completions and vLLM's prompt_logprobs. */

import type { Tokenizer } from "../../core/model/tokenizer/text.ts";
import type { PositionLogprobs, TokenLogprob } from "../engine/request.ts";
import { tokenByteList, tokenCodePoints, tokenText } from "./token-text.ts";

/** Written instead of -Infinity, which JSON does not have. */
const LOWEST = -9999;

interface ChatToken {
  readonly token: string;
  readonly logprob: number;
  readonly bytes: number[] | null;
}

/** `choices[].logprobs` of a chat completion. */
export interface ChatLogprobs {
  readonly content: readonly (ChatToken & { readonly top_logprobs: readonly ChatToken[] })[];
  readonly refusal: null;
}

/** `choices[].logprobs` of a completion; the first token of an echoed prompt has null. */
export interface CompletionLogprobs {
  readonly tokens: string[];
  readonly token_logprobs: (number | null)[];
  readonly top_logprobs: (Record<string, number> | null)[];
  /** Code points of the text before each token. */
  readonly text_offset: number[];
}

/** vLLM's `prompt_logprobs`: token id → log-probability, one object per prompt token, null for the first. */
export type PromptLogprobs = (Record<
  string,
  { logprob: number; rank: number | null; decoded_token: string }
> | null)[];

/** Log-probabilities of generated tokens with the `top` most likely of each position. */
export function chatLogprobs(
  tokenizer: Tokenizer | undefined,
  positions: readonly PositionLogprobs[],
  top: number,
): ChatLogprobs {
  const show = ({ tokenId, logprob }: TokenLogprob): ChatToken => ({
    token: tokenText(tokenizer, tokenId),
    logprob: finite(logprob),
    bytes: tokenByteList(tokenizer, tokenId),
  });
  const content = positions.map((position) => ({
    ...show(position.token),
    top_logprobs: position.top.slice(0, top).map(show),
  }));
  return { content, refusal: null };
}

/** Collects a completion's tokens in order and keeps the text offset between chunks. */
export class CompletionLogprobWriter {
  readonly #tokenizer: Tokenizer | undefined;
  readonly #top: number;
  #offset = 0;

  constructor(tokenizer: Tokenizer | undefined, top: number) {
    this.#tokenizer = tokenizer;
    this.#top = top;
  }

  /** The echoed prompt's part: all its text counts, special tokens too. */
  prompt(
    tokenIds: readonly number[],
    positions: readonly (PositionLogprobs | undefined)[],
  ): CompletionLogprobs {
    const out = empty();
    tokenIds.forEach((id, i) => {
      this.#push(out, id, positions[i], tokenCodePoints(this.#tokenizer, id));
    });
    return out;
  }

  /** Generated tokens; their text leaves special tokens out. */
  generated(positions: readonly PositionLogprobs[]): CompletionLogprobs {
    const out = empty();
    for (const position of positions) {
      const id = position.token.tokenId;
      const special = this.#tokenizer?.isSpecial(id) ?? false;
      this.#push(out, id, position, special ? 0 : tokenCodePoints(this.#tokenizer, id));
    }
    return out;
  }

  #push(
    out: CompletionLogprobs,
    id: number,
    position: PositionLogprobs | undefined,
    codePoints: number,
  ): void {
    out.tokens.push(tokenText(this.#tokenizer, id));
    out.text_offset.push(this.#offset);
    this.#offset += codePoints;
    out.token_logprobs.push(position === undefined ? null : finite(position.token.logprob));
    out.top_logprobs.push(position === undefined ? null : this.#topOf(position));
  }

  /** The most likely tokens and the token itself; of two ids with the same text the more likely one stays. */
  #topOf(position: PositionLogprobs): Record<string, number> {
    const entries = new Map<string, number>();
    for (const { tokenId, logprob } of [...position.top.slice(0, this.#top), position.token]) {
      const text = tokenText(this.#tokenizer, tokenId);
      if (!entries.has(text)) entries.set(text, finite(logprob));
    }
    return Object.fromEntries(entries);
  }
}

/** Both parts of an echoed completion as one. */
export function joinLogprobs(a: CompletionLogprobs, b: CompletionLogprobs): CompletionLogprobs {
  return {
    tokens: [...a.tokens, ...b.tokens],
    token_logprobs: [...a.token_logprobs, ...b.token_logprobs],
    top_logprobs: [...a.top_logprobs, ...b.top_logprobs],
    text_offset: [...a.text_offset, ...b.text_offset],
  };
}

/** Log-probabilities of the prompt's tokens as vLLM writes them; the rank is known among the `top` only. */
export function promptLogprobs(
  tokenizer: Tokenizer | undefined,
  positions: readonly (PositionLogprobs | undefined)[],
  top: number,
): PromptLogprobs {
  return positions.map((position) => {
    if (position === undefined) return null;
    const entry = ({ tokenId, logprob }: TokenLogprob, rank: number | null) =>
      [
        String(tokenId),
        { logprob: finite(logprob), rank, decoded_token: tokenText(tokenizer, tokenId) },
      ] as const;
    const rank = position.top.findIndex(({ tokenId }) => tokenId === position.token.tokenId) + 1;
    return Object.fromEntries([
      entry(position.token, rank > 0 ? rank : null),
      ...position.top.slice(0, top).map((candidate, i) => entry(candidate, i + 1)),
    ]);
  });
}

function empty(): CompletionLogprobs {
  return { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
}

function finite(logprob: number): number {
  return Math.max(LOWEST, logprob);
}
