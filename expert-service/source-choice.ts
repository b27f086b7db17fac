/** Which source an expert is taken from first, by what each was measured at; pure. */

/** A source that failed is left alone for so long, milliseconds. */
const RETRY_AFTER_MS = 10_000;

/** A measurement counts for so long, milliseconds: caches grow warm and peers busy. */
const MEASURED_FOR_MS = 60_000;

/** Share of the newest measurement. */
const NEWEST = 0.3;

/** What is known of a source. */
export interface SourceRecord {
  readonly secondsPerByte?: number;
  /** Milliseconds. */
  readonly measuredAt?: number;
  readonly failedAt?: number;
}

/** The record after an expert came from the source. */
export function measured(
  record: SourceRecord,
  seconds: number,
  bytes: number,
  now: number,
): SourceRecord {
  const latest = seconds / bytes;
  const fresh = isFresh(record, now) ? record.secondsPerByte : undefined;
  const secondsPerByte = fresh === undefined ? latest : fresh + NEWEST * (latest - fresh);
  return { secondsPerByte, measuredAt: now };
}

/** The record after the source failed. */
export function failed(record: SourceRecord, now: number): SourceRecord {
  return { ...record, failedAt: now };
}

/** Whether a source failed so lately that others are tried before it. */
export function failedLately({ failedAt }: SourceRecord, now: number): boolean {
  return failedAt !== undefined && now - failedAt < RETRY_AFTER_MS;
}

/**
 * Sources in the order to try: one that was not measured lately comes first, so that it is; then the fastest; those that
 * failed lately come last.
 */
export function orderSources(
  sources: readonly string[],
  recordOf: (source: string) => SourceRecord,
  now: number,
): string[] {
  const rank = (source: string): number => {
    const record = recordOf(source);
    if (failedLately(record, now)) return Infinity;
    return isFresh(record, now) ? (record.secondsPerByte ?? 0) : 0;
  };
  return sources.toSorted((a, b) => {
    const [first, second] = [rank(a), rank(b)];
    // Two infinities have no difference.
    return first === second ? 0 : first - second;
  });
}

function isFresh({ secondsPerByte, measuredAt }: SourceRecord, now: number): boolean {
  return (
    secondsPerByte !== undefined && measuredAt !== undefined && now - measuredAt < MEASURED_FOR_MS
  );
}
