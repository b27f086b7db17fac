/** Text of a growing list of token ids, piece by piece. */

import type { Tokenizer } from "./text.ts";

/** Turns ids into text as they come; the pieces together are the text of all ids. */
export interface IncrementalDecoder {
  /** Text that the ids complete; a character whose bytes are not all there is held back. */
  push(ids: readonly number[]): string;
  /** The rest: bytes that wait for more become U+FFFD. The decoder is then as new. */
  flush(): string;
}

/** How ids are decoded. */
export interface IncrementalDecoderOptions {
  /** False. */
  readonly skipSpecialTokens?: boolean;
  /** Ids whose text the new ids go on with: a space between the two is text. None. */
  readonly after?: readonly number[];
}

/** A decoder of one sequence of ids. */
export function createIncrementalDecoder(
  tokenizer: Tokenizer,
  options: IncrementalDecoderOptions = {},
): IncrementalDecoder {
  const skip = options.skipSpecialTokens ?? false;
  const wanted = (ids: readonly number[]) =>
    skip ? ids.filter((id) => !tokenizer.isSpecial(id)) : ids;
  // No more than a window looks at.
  const after = wanted(options.after ?? []).slice(-CONTEXT_IDS);
  const decoder = tokenizer.byteLevel
    ? byteDecoder(tokenizer, after.length > 0)
    : windowDecoder(tokenizer, after);
  return { push: (ids) => decoder.push(wanted(ids)), flush: () => decoder.flush() };
}

/** Where bytes alone make the text, the platform's own decoder knows which of them to hold back. */
function byteDecoder(tokenizer: Tokenizer, continues: boolean): IncrementalDecoder {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  let atStart = tokenizer.stripsFirstSpace && !continues;
  return {
    push: (ids) => {
      let text = "";
      for (const id of ids) {
        let bytes = tokenizer.tokenBytes(id);
        if (atStart && bytes.length > 0) {
          atStart = false;
          if (bytes[0] === SPACE) bytes = bytes.subarray(1);
        }
        text += decoder.decode(bytes, { stream: true });
      }
      return text;
    },
    flush: () => {
      atStart = tokenizer.stripsFirstSpace && !continues;
      return decoder.decode();
    },
  };
}

const SPACE = 0x20;
/** Ids that a window keeps at least, and those after which it is cut. */
const CONTEXT_IDS = 8;
const WINDOW_IDS = 32;

/** Elsewhere a token's text depends on its neighbours: a window of the last ids is decoded again and again. */
function windowDecoder(tokenizer: Tokenizer, after: readonly number[]): IncrementalDecoder {
  let window: number[];
  /** Text of the window that is given out. */
  let given: string;
  const restart = () => {
    window = [...after];
    // A character that the ids before began is the first to be given out.
    given = tokenizer.decode(window).replace(/\ufffd+$/u, "");
  };
  restart();
  /** Keeps the last ids, from one on that begins a character. */
  const cut = () => {
    for (let kept = CONTEXT_IDS; kept < 2 * CONTEXT_IDS; kept++) {
      const text = tokenizer.decode(window.slice(-kept));
      if (text === "" || text.includes("\ufffd") || !given.endsWith(text)) continue;
      window = window.slice(-kept);
      given = text;
      return;
    }
  };
  return {
    push: (ids) => {
      let pieces = "";
      for (const id of ids) {
        window.push(id);
        const text = tokenizer.decode(window);
        if (!text.startsWith(given) || text.endsWith("\ufffd")) continue;
        pieces += text.slice(given.length);
        given = text;
        if (window.length >= WINDOW_IDS) cut();
      }
      return pieces;
    },
    flush: () => {
      const rest = tokenizer.decode(window).slice(given.length);
      restart();
      return rest;
    },
  };
}
