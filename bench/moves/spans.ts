/** Which gaps between tokens are of rest, and which of a move: what was measured beside either counts for neither. Pure. */

/** A stretch of time, milliseconds of one clock. */
export interface Span {
  readonly from: number;
  readonly to: number;
}

/** The time between two tokens of a request. */
export interface Gap extends Span {
  /** No prompt was under way in it. */
  readonly isDecode: boolean;
}

/** What is measured: rest, or something for which experts move. */
export interface Stretch extends Span {
  readonly kind: "rest" | "join" | "drain";
}

const isDecision = (line: string) => line.includes('"placement decided"');

/** Whether a router logged with this line that it goes to a placement, or has gone. */
export function isOfAdoption(line: string): boolean {
  return isDecision(line) || line.includes('"placement adopted"');
}

/**
 * The times in which a router had shards load a placement and went to it, from the lines that it logged of that; `origin`:
 * 0 of the clock, milliseconds since 1970.
 */
export function adoptionsIn(lines: readonly string[], origin: number): Span[] {
  const spans: Span[] = [];
  let from: number | undefined;
  for (const line of lines) {
    const isFirst = isDecision(line);
    const { time } = JSON.parse(line) as { time: string };
    const at = Date.parse(time) - origin;
    // One that another took the place of has moved experts until then.
    if (from !== undefined) spans.push({ from, to: at });
    from = isFirst ? at : undefined;
  }
  return from === undefined ? spans : [...spans, { from, to: Infinity }];
}

/**
 * The moves of a join or a drain. A shard that is there gets experts when a plan finds that worth it: what it waits for that is
 * no move, while a drain is one from the moment that it is asked for; of a shard that held nothing it takes no time.
 */
export function movesOf({ kind, from, to }: Stretch, adoptions: readonly Span[]): Span[] {
  const those = adoptions.filter((adoption) => overlap(adoption, { from, to }));
  if (kind !== "drain") return those;
  return [{ from, to: Math.max(from, ...those.map((adoption) => adoption.to)) }];
}

/** Gaps of which any part is in one of the moves. */
export function gapsInMoves(gaps: readonly Gap[], moves: readonly Span[]): Gap[] {
  return gaps.filter((gap) => moves.some((move) => overlap(gap, move)));
}

/** Gaps that are in one of the stretches, all of them, while nothing was adopted. */
export function gapsAtRest(
  gaps: readonly Gap[],
  rests: readonly Span[],
  adoptions: readonly Span[],
): Gap[] {
  return gaps.filter(
    (gap) =>
      rests.some(({ from, to }) => from <= gap.from && gap.to <= to) &&
      !adoptions.some((adoption) => overlap(gap, adoption)),
  );
}

function overlap(one: Span, other: Span): boolean {
  return one.from < other.to && other.from < one.to;
}
