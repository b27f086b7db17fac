/** What a failed dispatch means for its rows and for its shard; pure. */

import { DispatchErrorCode } from "../../../proto/gen/switchyard/v1/expert.ts";
import { UnavailableError } from "../../engine/errors.ts";
import { DispatchFailedError, DispatchTimeoutError, ShardLostError } from "../errors.ts";

/** Why rows were sent again. */
export const RESEND_REASONS = [
  "lost",
  "timeout",
  "wrong_epoch",
  "checksum",
  "wrong_result",
  "overloaded",
  "refused",
] as const;

/** One of RESEND_REASONS. */
export type ResendReason = (typeof RESEND_REASONS)[number];

const REASONS: Readonly<Partial<Record<DispatchErrorCode, ResendReason>>> = {
  [DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_EPOCH]: "wrong_epoch",
  [DispatchErrorCode.DISPATCH_ERROR_CODE_EXPERT_NOT_HELD]: "wrong_epoch",
  [DispatchErrorCode.DISPATCH_ERROR_CODE_CHECKSUM]: "checksum",
  [DispatchErrorCode.DISPATCH_ERROR_CODE_WRONG_RESULT]: "wrong_result",
  [DispatchErrorCode.DISPATCH_ERROR_CODE_DEADLINE]: "timeout",
  [DispatchErrorCode.DISPATCH_ERROR_CODE_OVERLOADED]: "overloaded",
};

/** Why a dispatch that failed like this is sent again; undefined where that would be of no use. */
export function resendReason(error: unknown): ResendReason | undefined {
  if (error instanceof ShardLostError) return "lost";
  if (error instanceof DispatchTimeoutError) return "timeout";
  if (error instanceof DispatchFailedError) return REASONS[error.code] ?? "refused";
  return error instanceof UnavailableError ? "lost" : undefined;
}

/** Refusals of the same rows after which the error is theirs. */
const MAX_REFUSALS = 6;
/** Wrong sums by one shard for the same rows, and shards with wrong sums for them, after which the rows are to blame. */
const MAX_WRONG_BY_ONE = 3;
const MAX_WRONG_SHARDS = 2;
const FIRST_PAUSE_MS = 10;
const LONGEST_PAUSE_MS = 1_000;

/** What became of some rows before. */
export interface RowsHistory {
  /** Shards that are not asked again as long as there are others. */
  readonly avoid: ReadonlySet<number>;
  /** Rounds over all copies that were in vain. */
  readonly rounds: number;
  readonly timeouts: number;
  readonly refusals: number;
  /** How often each shard had wrong sums for them. */
  readonly wrong: ReadonlyMap<number, number>;
}

/** Nothing was tried yet. */
export const UNTRIED: RowsHistory = {
  avoid: new Set(),
  rounds: 0,
  timeouts: 0,
  refusals: 0,
  wrong: new Map(),
};

/** The history after one more failure. */
export function withFailure(history: RowsHistory, rank: number, reason: ResendReason): RowsHistory {
  const count = (which: ResendReason) => (reason === which ? 1 : 0);
  return {
    avoid: new Set(history.avoid).add(rank),
    rounds: history.rounds,
    timeouts: history.timeouts + count("timeout"),
    refusals: history.refusals + count("refused"),
    wrong:
      reason === "wrong_result"
        ? new Map(history.wrong).set(rank, (history.wrong.get(rank) ?? 0) + 1)
        : history.wrong,
  };
}

/** Whether the rows were refused so often that the error is their answer. */
export function refusedForGood({ refusals }: RowsHistory): boolean {
  return refusals >= MAX_REFUSALS;
}

/** Whether the rows themselves, not the shards, make sums that are not finite. */
export function rowsToBlame({ wrong }: RowsHistory): boolean {
  return wrong.size >= MAX_WRONG_SHARDS || [...wrong.values()].some((n) => n >= MAX_WRONG_BY_ONE);
}

/** Milliseconds before all copies are tried again. */
export function pauseMs({ rounds }: RowsHistory): number {
  return Math.min(LONGEST_PAUSE_MS, FIRST_PAUSE_MS * 2 ** Math.min(rounds, 16));
}

/** Milliseconds that a dispatch without a forecast may take before it is sent to another copy as well. */
const HEDGE_UNKNOWN_MS = 500;
const LEAST_HEDGE_MS = 100;
const LEAST_TIMEOUT_MS = 1_000;
const MOST_TIMEOUT_MS = 60_000;

/** Milliseconds after which rows go to another copy as well, from the forecast of the shard. */
export function hedgeAfterMs(expectedSeconds: number | undefined): number {
  if (expectedSeconds === undefined) return HEDGE_UNKNOWN_MS;
  return Math.max(LEAST_HEDGE_MS, 4_000 * expectedSeconds);
}

/** Milliseconds after which a dispatch counts as failed: far beyond its forecast, at most `limitMs`; twice as long for every time that this was too short. */
export function timeoutMs(
  expectedSeconds: number | undefined,
  limitMs: number,
  { timeouts }: RowsHistory,
): number {
  const expected = expectedSeconds === undefined ? limitMs : 20_000 * expectedSeconds;
  const first = Math.min(limitMs, Math.max(LEAST_TIMEOUT_MS, expected));
  return Math.ceil(
    Math.min(Math.max(limitMs, MOST_TIMEOUT_MS), first * 2 ** Math.min(timeouts, 16)),
  );
}
