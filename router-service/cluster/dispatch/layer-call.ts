/** One layer of one batch on the shards: every row is computed by some copy of its experts, whatever shards do meanwhile. */

import { NO_RANK, type Placement } from "../../../core/placement/placement.ts";
import type { WireRows } from "../../../core/wire-rows.ts";
import { UnavailableError } from "../../engine/errors.ts";
import type { Routing, StepRouting } from "../../engine/run-experts.ts";
import type { Attempts, Part } from "./attempts.ts";
import { changeOrAbort } from "../changes.ts";
import { chooseCopies, type CopyChooser } from "./choose-copies.ts";
import { allPairs, splitByRank, type ShardRows } from "./dispatch.ts";
import type { LateWatch } from "./late-watch.ts";
import type { Directory } from "../reach.ts";
import {
  hedgeAfterMs,
  pauseMs,
  refusedForGood,
  resendReason,
  type ResendReason,
  type RowsHistory,
  rowsToBlame,
  UNTRIED,
  withFailure,
} from "./resend.ts";
import { Scope } from "./scope.ts";

/** Called as things happen to rows; each returns at once. */
export interface RecoveryObserver {
  /** Rows of a failed dispatch go to a copy again. */
  readonly onResend?: (reason: ResendReason) => void;
  /** Rows went to another copy as well, because an answer is late. */
  readonly onHedge?: () => void;
  /** Rows waited for a copy of their experts. */
  readonly onCopyWait?: (seconds: number) => void;
  /** All rows of a layer have their sums. */
  readonly onLayer?: (seconds: number) => void;
}

/** What a call is of. */
export interface LayerCallOptions extends RecoveryObserver {
  readonly layer: number;
  readonly directory: Directory;
  readonly chooser: CopyChooser;
  readonly attempts: Attempts;
  readonly lateWatch: LateWatch;
  readonly hiddenSize: number;
  /** Milliseconds that the call waits for experts to have a copy. */
  readonly copyWaitMs: number;
}

/** What happened first to a dispatch; hedged: another copy answered. */
type Outcome =
  | { readonly kind: "answered" | "hedged"; readonly parts: Part[] }
  | { readonly kind: "failed"; readonly error: unknown }
  | { readonly kind: "late" };

const ANOTHER_WAS_FIRST = "another copy answered first";

/** Runs one layer; used once. */
export class LayerCall {
  readonly #options: LayerCallOptions;
  readonly #routing: StepRouting;
  readonly #chosen: Routing;
  readonly #packed: WireRows;
  readonly #beganAt = performance.now();

  constructor(options: LayerCallOptions, routing: StepRouting, chosen: Routing, packed: WireRows) {
    this.#options = options;
    this.#routing = routing;
    this.#chosen = chosen;
    this.#packed = packed;
  }

  /** Partial sums that together have each expert of each token once, in an order that the shards alone decide. */
  async run(numExperts: number): Promise<Part[]> {
    const scope = new Scope();
    const { signal } = this.#routing;
    const onAbort = () => scope.abort(signal.reason);
    signal.addEventListener("abort", onAbort);
    try {
      const pairs = allPairs(this.#chosen, numExperts);
      const parts = await this.#cover(pairs, UNTRIED, scope);
      this.#options.onLayer?.((performance.now() - this.#beganAt) / 1000);
      return parts.sort((a, b) => a.rank - b.rank || a.pairs[0] - b.pairs[0]);
    } catch (error) {
      scope.abort(new DOMException("another dispatch of the layer failed", "AbortError"));
      throw error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Has pairs computed by the copies that can be used now, and the rest when they have one. */
  async #cover(pairs: Uint32Array, history: RowsHistory, scope: Scope): Promise<Part[]> {
    scope.throwIfAborted();
    const placement = this.#options.directory.placement();
    if (placement === undefined) return this.#coverLater(pairs, history, scope);
    const ranks = this.#choose(placement, pairs, history);
    const work = splitByRank(this.#packed, this.#chosen, pairs, ranks).map((part) =>
      part.rank === NO_RANK
        ? this.#coverLater(part.pairs, history, scope)
        : this.#settle(part, placement, history, scope),
    );
    return work.length === 1 ? work[0] : (await Promise.all(work)).flat();
  }

  #choose(placement: Placement, pairs: Uint32Array, { avoid }: RowsHistory): Uint16Array {
    const { directory, chooser, layer } = this.#options;
    const replicas = placement.layers.get(layer) ?? [];
    const reach = (rank: number) =>
      avoid.has(rank) ? undefined : directory.reach(rank, placement.epoch);
    const ranks = chooser.choose(placement, layer, this.#chosen, pairs, reach);
    if (!ranks.includes(NO_RANK)) return ranks;
    // Better a shard that is slow or silent than none.
    const any = chooseCopies(this.#chosen, pairs, replicas, (rank) => reach(rank) !== undefined);
    return ranks.map((rank, index) => (rank === NO_RANK ? any[index] : rank));
  }

  /** Tries pairs again that no copy could be asked for: when one comes back, and after a pause those that failed. */
  async #coverLater(pairs: Uint32Array, history: RowsHistory, scope: Scope): Promise<Part[]> {
    const { directory, copyWaitMs, layer, onCopyWait } = this.#options;
    const waitsFrom = performance.now();
    const again = { ...history, avoid: UNTRIED.avoid, rounds: history.rounds + 1 };
    try {
      const hopeless = directory.hopeless();
      if (hopeless !== undefined) throw new UnavailableError(hopeless);
      const leftMs = this.#beganAt + copyWaitMs - waitsFrom;
      if (leftMs <= 0) {
        const why = directory.missing() ?? "every copy fails";
        throw new UnavailableError(
          `layer ${layer} waited ${copyWaitMs / 1000} s for its experts: ${why}`,
        );
      }
      const retryMs = history.avoid.size > 0 ? pauseMs(history) : leftMs;
      await changeOrAbort(directory.changes, scope.signal, Math.min(leftMs, retryMs));
    } finally {
      onCopyWait?.((performance.now() - waitsFrom) / 1000);
    }
    return this.#cover(pairs, again, scope);
  }

  /** Has one shard compute a part; another copy as well where that takes too long, and instead where it fails. */
  async #settle(
    part: ShardRows,
    placement: Placement,
    history: RowsHistory,
    scope: Scope,
  ): Promise<Part[]> {
    const { directory, attempts, chooser, layer, lateWatch, onHedge } = this.#options;
    const { epoch } = placement;
    const reach = directory.reach(part.rank, epoch);
    if (reach === undefined) return this.#cover(part.pairs, history, scope);
    const attempt = attempts.start(reach, part, epoch, history, this.#routing, scope);
    const answered = attempt.answer.then(
      (answer): Outcome => ({ kind: "answered", parts: [answer] }),
      (error: unknown): Outcome => ({ kind: "failed", error }),
    );
    const first = Promise.withResolvers<Outcome>();
    void answered.then(first.resolve);
    const awaited = lateWatch.add(
      hedgeAfterMs(attempt.expectedSeconds),
      chooser.haveOthers(placement, layer, this.#chosen, part.pairs),
      () => first.resolve({ kind: "late" }),
    );
    let outcome = await first.promise;
    lateWatch.delete(awaited);
    while (outcome.kind === "late") {
      if (this.#othersCan(part, history)) {
        reach.overdue();
        onHedge?.();
        const avoid = new Set(history.avoid).add(part.rank);
        const other = scope.within();
        const hedge = this.#cover(part.pairs, { ...history, avoid }, other);
        const hedged = hedge.then(
          (parts): Outcome => ({ kind: "hedged", parts }),
          (): Outcome => ({ kind: "late" }),
        );
        const sooner = await Promise.race([answered, hedged]);
        if (sooner.kind === "failed") {
          scope.throwIfAborted();
          const reason = resendReason(sooner.error);
          if (reason !== undefined) directory.failed(part.rank, epoch, reason);
          return hedge;
        }
        if (sooner.kind === "hedged") {
          attempt.cancel(new DOMException(ANOTHER_WAS_FIRST, "AbortError"));
          return sooner.parts;
        }
        if (sooner.kind === "answered") {
          other.abort(new DOMException(ANOTHER_WAS_FIRST, "AbortError"));
          return sooner.parts;
        }
        // The other copies are of no use; the first one may still answer.
        other.abort(new DOMException("another dispatch of the hedge failed", "AbortError"));
        scope.throwIfAborted();
      }
      const changed = directory.changes.next.then((): Outcome => ({ kind: "late" }));
      outcome = await Promise.race([answered, changed]);
    }
    if (outcome.kind !== "failed") return outcome.parts;
    return this.#again(outcome.error, part, epoch, history, scope);
  }

  /** Whether all pairs of a part have another copy that is worth asking. */
  #othersCan(part: ShardRows, { avoid }: RowsHistory): boolean {
    const { directory, layer } = this.#options;
    const placement = directory.placement();
    const replicas = placement?.layers.get(layer);
    if (placement === undefined || replicas === undefined) return false;
    const can = (rank: number) =>
      rank !== part.rank &&
      !avoid.has(rank) &&
      directory.reach(rank, placement.epoch)?.trusted === true;
    return part.pairs.every((pair) =>
      replicas[this.#chosen.ids[pair]].some(({ rank }) => can(rank)),
    );
  }

  /** What becomes of a part whose dispatch failed. */
  #again(
    error: unknown,
    part: ShardRows,
    epoch: number,
    before: RowsHistory,
    scope: Scope,
  ): Promise<Part[]> | Part[] {
    scope.throwIfAborted();
    const { directory, onResend } = this.#options;
    const reason = resendReason(error);
    if (reason === undefined) throw error;
    const history = withFailure(before, part.rank, reason);
    if (refusedForGood(history)) throw error;
    if (reason === "wrong_result" && rowsToBlame(history)) {
      return this.#isolate(part, epoch, history, scope);
    }
    directory.failed(part.rank, epoch, reason);
    onResend?.(reason);
    return this.#cover(part.pairs, history, scope);
  }

  /** Finds the tokens whose sums are not finite, and gives them such sums, so that the others' are right. */
  async #isolate(
    part: ShardRows,
    epoch: number,
    history: RowsHistory,
    scope: Scope,
  ): Promise<Part[]> {
    const { directory, attempts, hiddenSize } = this.#options;
    for (const rank of history.wrong.keys()) directory.forgive(rank);
    const { tokens, pairs, rank } = part;
    if (tokens.length === 1) {
      return [{ rank, tokens, pairs, sums: new Float32Array(hiddenSize).fill(NaN) }];
    }
    const middle = tokens[tokens.length >> 1] * this.#chosen.topK;
    const halves = [pairs.filter((pair) => pair < middle), pairs.filter((pair) => pair >= middle)];
    const judged = halves.map(async (half) => {
      const ranks = new Uint16Array(half.length).fill(rank);
      const [rows] = splitByRank(this.#packed, this.#chosen, half, ranks);
      const reach = directory.reach(rank, epoch);
      if (reach === undefined) return this.#cover(half, history, scope);
      try {
        const { answer } = attempts.start(reach, rows, epoch, history, this.#routing, scope);
        return [await answer];
      } catch (error) {
        scope.throwIfAborted();
        if (resendReason(error) === "wrong_result") {
          return this.#isolate(rows, epoch, history, scope);
        }
        return this.#again(error, rows, epoch, history, scope);
      }
    });
    return (await Promise.all(judged)).flat();
  }
}
