/** A thread that plans: a plan for a large model takes a second or two, and the router's own thread has tokens to serve. */

import { Worker } from "node:worker_threads";

import { countText } from "../../../core/amounts.ts";
import type { PlacedLayers, Plan, PlannerInput } from "../../../core/placement/planner.ts";
import { PlacementError, PlannerInputError } from "../../../core/placement/planner.ts";
import { errorMessage } from "../../../core/error-message.ts";
import { QueueFullError } from "../../engine/errors.ts";
import type { Assessment } from "./assessment.ts";

/** What the thread is asked. */
export type PlannerQuestion =
  | { readonly kind: "plan"; readonly input: PlannerInput }
  | { readonly kind: "assess"; readonly input: PlannerInput; readonly placed: PlacedLayers };

/** What it is told when it starts, and does while it is asked nothing. */
export interface WarmUp {
  readonly kind: "warm-up";
}

/** What it answers: a plan or an assessment, or the error that was thrown. */
export type PlannerAnswer =
  | { readonly result: Plan | Assessment }
  | { readonly kind: string; readonly message: string };

/** Longest wait for an answer once the thread works on it, milliseconds. */
const ANSWER_MS = 60_000;

/** Questions that wait at most, whoever asks. */
const MAX_WAITING = 64;

/** The thread did not answer. */
export class PlannerThreadError extends Error {
  override readonly name = "PlannerThreadError";
}

interface Waiting extends PromiseWithResolvers<Plan | Assessment> {
  readonly question: PlannerQuestion;
}

/**
 * Plans and judges placements off the caller's thread, one question after another; the thread starts with the first, or
 * at once where it is to be warm by then. A question that takes too long ends the thread, and the next one is asked of a new one.
 */
export class PlannerThread {
  /** The planner's own, which go first, and those of others. */
  readonly #own: Waiting[] = [];
  readonly #others: Waiting[] = [];
  /** What the thread works on. */
  #asked: { readonly waiting: Waiting; readonly timer: NodeJS.Timeout } | undefined;
  #worker: Worker | undefined;
  readonly #isWarm: boolean;
  #closed = false;

  /** A thread that is warm plans small clusters when it starts: what is compiled then makes its first plan no slower. */
  constructor({ warm = false }: { readonly warm?: boolean } = {}) {
    this.#isWarm = warm;
    if (!warm) return;
    this.#worker = this.#start();
    this.#worker.unref();
  }

  /**
   * As `planPlacement`. Rejects with its errors, a PlannerThreadError, or a QueueFullError where `limit` questions wait;
   * without a limit it goes before all that have one.
   */
  async plan(input: PlannerInput, limit?: number): Promise<Plan> {
    return (await this.#ask({ kind: "plan", input }, limit)) as Plan;
  }

  /** As `assess`. Rejects as `plan`. */
  async assess(input: PlannerInput, placed: PlacedLayers, limit?: number): Promise<Assessment> {
    return (await this.#ask({ kind: "assess", input, placed }, limit)) as Assessment;
  }

  /** Ends the thread; what is waited for is rejected. */
  async close(): Promise<void> {
    this.#closed = true;
    const error = new PlannerThreadError("the planner's thread is closed");
    for (const { reject } of [...this.#own.splice(0), ...this.#others.splice(0)]) reject(error);
    await this.#end(error);
  }

  #ask(question: PlannerQuestion, limit: number | undefined): Promise<Plan | Assessment> {
    if (this.#closed) {
      return Promise.reject(new PlannerThreadError("the planner's thread is closed"));
    }
    const asked = this.#own.length + this.#others.length + (this.#asked === undefined ? 0 : 1);
    const most = Math.min(limit ?? MAX_WAITING, MAX_WAITING);
    if (asked >= most) return Promise.reject(new QueueFullError(asked, most));
    const waiting = { ...Promise.withResolvers<Plan | Assessment>(), question };
    (limit === undefined ? this.#own : this.#others).push(waiting);
    this.#next();
    return waiting.promise;
  }

  #next(): void {
    if (this.#asked !== undefined || this.#closed) return;
    const waiting = this.#own.shift() ?? this.#others.shift();
    if (waiting === undefined) {
      this.#worker?.unref();
      return;
    }
    const { question } = waiting;
    this.#worker ??= this.#start();
    const timer = setTimeout(() => {
      const text = `${nameOf(question)} took longer than ${ANSWER_MS} ms`;
      void this.#end(new PlannerThreadError(text));
    }, ANSWER_MS);
    this.#asked = { waiting, timer };
    this.#worker.ref();
    this.#worker.postMessage(question, []);
  }

  #start(): Worker {
    // The process's own flags may load what a thread must not.
    const worker = new Worker(new URL("planner-worker.ts", import.meta.url), { execArgv: [] });
    worker.on("message", (answer: PlannerAnswer) => {
      if (worker !== this.#worker) return;
      const waiting = this.#take();
      if ("result" in answer) waiting?.resolve(answer.result);
      else waiting?.reject(errorOf(answer));
      this.#next();
    });
    const onEnd = (reason: string) => {
      if (worker !== this.#worker) return;
      void this.#end(new PlannerThreadError(`the planner's thread ended: ${reason}`));
    };
    worker.on("error", (error) => onEnd(errorMessage(error)));
    worker.on("exit", (code) => onEnd(`exit code ${code}`));
    if (this.#isWarm) worker.postMessage({ kind: "warm-up" } satisfies WarmUp, []);
    return worker;
  }

  #take(): Waiting | undefined {
    const asked = this.#asked;
    this.#asked = undefined;
    clearTimeout(asked?.timer);
    return asked?.waiting;
  }

  /** Ends the thread and refuses what it works on; what waits goes to a new one. */
  async #end(error: PlannerThreadError): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    this.#take()?.reject(error);
    this.#next();
    await worker?.terminate();
  }
}

function nameOf({ kind, input }: PlannerQuestion): string {
  const { layers, numExperts, shards } = input;
  const what = kind === "plan" ? "a plan" : "judging a placement";
  const size = `${countText(layers.length, "layer")} of ${countText(numExperts, "expert")}`;
  return `${what} of ${size} on ${countText(shards.length, "shard")}`;
}

function errorOf({ kind, message }: Extract<PlannerAnswer, { kind: string }>): Error {
  if (kind === "PlacementError") return new PlacementError(message);
  if (kind === "PlannerInputError") return new PlannerInputError(message);
  return new Error(`${kind}: ${message}`);
}
