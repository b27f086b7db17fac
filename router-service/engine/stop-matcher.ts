/** Finds stop strings in text that comes in pieces. */

/** What is sure after a piece: text to release, and the stop string that ended it. */
export interface StopResult {
  readonly text: string;
  readonly match?: string;
}

/** Looks for the stop strings of one text. */
export interface StopMatcher {
  /**
   * Takes the next piece. A stop string that ends in it is a match if `mayStop`; the text before it is released, it
   * and what follows are dropped. Otherwise releases all text that can not be the beginning of a stop string.
   */
  push(piece: string, mayStop: boolean): StopResult;
  /** Releases what is held back, after a last piece; nothing matches any more. */
  flush(piece: string): string;
}

/** Makes a matcher: the stop string that ends first wins, of several the longest. Empty strings never match. */
export function createStopMatcher(stop: readonly string[]): StopMatcher {
  const stops = stop.filter((text) => text !== "");
  let held = "";
  return {
    push(piece, mayStop) {
      const text = held + piece;
      const match = mayStop ? firstMatch(text, held.length, stops) : undefined;
      if (match !== undefined) {
        held = "";
        return { text: text.slice(0, match.start), match: match.stop };
      }
      const sure = text.length - openLength(text, stops);
      held = text.slice(sure);
      return { text: text.slice(0, sure) };
    },
    flush(piece) {
      const text = held + piece;
      held = "";
      return text;
    },
  };
}

/** The match that ends first, beyond the `known` characters; of those the one that starts first. */
function firstMatch(
  text: string,
  known: number,
  stops: readonly string[],
): { readonly start: number; readonly stop: string } | undefined {
  let best: { start: number; end: number; stop: string } | undefined;
  for (const stop of stops) {
    const start = text.indexOf(stop, Math.max(0, known - stop.length + 1));
    if (start < 0) continue;
    const end = start + stop.length;
    if (best === undefined || end < best.end || (end === best.end && start < best.start)) {
      best = { start, end, stop };
    }
  }
  return best;
}

/** Characters at the end of `text` that could be the beginning of a stop string: the longest such suffix. */
function openLength(text: string, stops: readonly string[]): number {
  let longest = 0;
  for (const stop of stops) {
    for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
      if (text.endsWith(stop.slice(0, length))) longest = length;
    }
  }
  return longest;
}
