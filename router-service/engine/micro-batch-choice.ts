/** One micro-batch or two: chosen by what steps of that size took with either. Pure. */

/** What steps with about as many tokens took; milliseconds, newer steps weigh more. */
interface StepTimes {
  readonly steps: number;
  /** With one micro-batch, with two; absent before the first. */
  readonly ms: readonly [number?, number?];
}

/** Times of the steps so far, by the power of two below their number of tokens. */
export type MicroBatchTimes = ReadonlyMap<number, StepTimes>;

/** Every how manieth step is run the way that was slower so far, as loads and machines change. */
const TRY_EVERY = 32;

/** Weight of the newest step. */
const NEWEST = 0.25;

/** A step below this many tokens is never cut: it has one sequence, or hardly more. */
const FEWEST_TOKENS = 2;

/** How many micro-batches a step of this many tokens is to have. */
export function chooseMicroBatches(times: MicroBatchTimes, numTokens: number): 1 | 2 {
  if (numTokens < FEWEST_TOKENS) return 1;
  const known = times.get(bucketOf(numTokens));
  const [one, two] = known?.ms ?? [];
  if (known === undefined || one === undefined) return 1;
  if (two === undefined) return 2;
  const turn = known.steps % TRY_EVERY === TRY_EVERY - 1;
  return two < one === !turn ? 2 : 1;
}

/** The times with one more step. */
export function noteStep(
  times: MicroBatchTimes,
  numTokens: number,
  microBatches: 1 | 2,
  ms: number,
): MicroBatchTimes {
  const bucket = bucketOf(numTokens);
  const known = times.get(bucket) ?? { steps: 0, ms: [] };
  const [one, two] = known.ms;
  const before = microBatches === 1 ? one : two;
  const now = before === undefined ? ms : before + NEWEST * (ms - before);
  return new Map(times).set(bucket, {
    steps: known.steps + 1,
    ms: microBatches === 1 ? [now, two] : [one, now],
  });
}

function bucketOf(numTokens: number): number {
  return Math.floor(Math.log2(numTokens));
}
