/** Text of a growing list of token ids, piece by piece. */

import type { Tokenizer } from "./text.ts";

/** Turns ids into text as they come; the pieces together are the text of all ids. */
export interface IncrementalDecoder {
  /** Text that the ids complete; a character whose bytes are not all there is held back. */
  push(ids: readonly number[]): string;
  /** The rest: bytes that wait for more become U+FFFD. The decoder is then as new. */
  flush(): string;
}

/** A decoder of one sequence of ids; `skipSpecialTokens` is false. */
export function createIncrementalDecoder(
  tokenizer: Tokenizer,
  options?: { readonly skipSpecialTokens?: boolean },
): IncrementalDecoder {
  const skip = options?.skipSpecialTokens ?? false;
  const decoder = tokenizer.byteLevel ? byteDecoder(tokenizer) : windowDecoder(tokenizer);
  if (!skip) return decoder;
  return {
    push: (ids) => decoder.push(ids.filter((id) => !tokenizer.isSpecial(id))),
    flush: () => decoder.flush(),
  };
}

/** Where bytes alone make the text, the platform's own decoder knows which of them to hold back. */
function byteDecoder(tokenizer: Tokenizer): IncrementalDecoder {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return {
    push: (ids) => {
      let text = "";
      for (const id of ids) text += decoder.decode(tokenizer.tokenBytes(id), { stream: true });
      return text;
    },
    flush: () => decoder.decode(),
  };
}

/** Ids that a window keeps at least, and those after which it is cut. */
const CONTEXT_IDS = 8;
const WINDOW_IDS = 32;

/** Elsewhere a token's text depends on its neighbours: a window of the last ids is decoded again and again. */
function windowDecoder(tokenizer: Tokenizer): IncrementalDecoder {
  let window: number[] = [];
  /** Text of the window that is given out. */
  let given = "";
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
      window = [];
      given = "";
      return rest;
    },
  };
}
