/** A thread that plans: a plan for a large model takes a second or two, and the router's own thread has tokens to serve. */

import { Worker } from "node:worker_threads";

import type { PlacedLayers, Plan, PlannerInput } from "../../core/placement/planner.ts";
import { PlacementError, PlannerInputError } from "../../core/placement/planner.ts";
import { QueueFullError } from "../engine/errors.ts";
import type { Assessment } from "./assessment.ts";

/** What the thread is asked. */
export interface PlannerQuestion {
  readonly id: number;
  readonly ask:
    | { readonly kind: "plan"; readonly input: PlannerInput }
    | { readonly kind: "assess"; readonly input: PlannerInput; readonly placed: PlacedLayers };
}

/** What it answers: a plan or an assessment, or the error that was thrown. */
export type PlannerAnswer =
  | { readonly id: number; readonly result: Plan | Assessment }
  | { readonly id: number; readonly kind: string; readonly message: string };

/** Longest wait for an answer, milliseconds. */
const ANSWER_MS = 60_000;

/** The thread did not answer. */
export class PlannerThreadError extends Error {
  override readonly name = "PlannerThreadError";
}

interface Waiting extends PromiseWithResolvers<Plan | Assessment> {
  readonly timer: NodeJS.Timeout;
}

/** Plans and judges placements off the caller's thread; the thread starts with the first question. */
export class PlannerThread {
  readonly #waiting = new Map<number, Waiting>();
  #worker: Worker | undefined;
  #nextId = 1;
  #closed = false;

  /** As `planPlacement`. Rejects with its errors, a PlannerThreadError, or a QueueFullError where `limit` questions wait. */
  async plan(input: PlannerInput, limit = Infinity): Promise<Plan> {
    return (await this.#ask({ kind: "plan", input }, limit)) as Plan;
  }

  /** As `assess`. Rejects as `plan`. */
  async assess(input: PlannerInput, placed: PlacedLayers, limit = Infinity): Promise<Assessment> {
    return (await this.#ask({ kind: "assess", input, placed }, limit)) as Assessment;
  }

  /** Ends the thread; what is waited for is rejected. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#end(new PlannerThreadError("the planner's thread is closed"));
  }

  #ask(ask: PlannerQuestion["ask"], limit: number): Promise<Plan | Assessment> {
    if (this.#closed) {
      return Promise.reject(new PlannerThreadError("the planner's thread is closed"));
    }
    if (this.#waiting.size >= limit) {
      return Promise.reject(new QueueFullError(this.#waiting.size, limit));
    }
    this.#worker ??= this.#start();
    const id = this.#nextId++;
    const timer = setTimeout(() => {
      void this.#end(new PlannerThreadError(`no plan within ${ANSWER_MS} ms`));
    }, ANSWER_MS);
    const waiting = { ...Promise.withResolvers<Plan | Assessment>(), timer };
    this.#waiting.set(id, waiting);
    this.#worker.ref();
    this.#worker.postMessage({ id, ask } satisfies PlannerQuestion, []);
    return waiting.promise;
  }

  #start(): Worker {
    // The process's own flags may load what a thread must not.
    const worker = new Worker(new URL("planner-worker.ts", import.meta.url), { execArgv: [] });
    worker.on("message", (answer: PlannerAnswer) => {
      const waiting = this.#take(answer.id);
      if (this.#waiting.size === 0) worker.unref();
      if ("result" in answer) waiting?.resolve(answer.result);
      else waiting?.reject(errorOf(answer));
    });
    worker.on("error", (error) => void this.#end(error as Error));
    return worker;
  }

  #take(id: number): Waiting | undefined {
    const waiting = this.#waiting.get(id);
    clearTimeout(waiting?.timer);
    this.#waiting.delete(id);
    return waiting;
  }

  async #end(error: Error): Promise<void> {
    const worker = this.#worker;
    this.#worker = undefined;
    for (const id of this.#waiting.keys()) this.#take(id)?.reject(error);
    await worker?.terminate();
  }
}

function errorOf({ kind, message }: Extract<PlannerAnswer, { kind: string }>): Error {
  if (kind === "PlacementError") return new PlacementError(message);
  if (kind === "PlannerInputError") return new PlannerInputError(message);
  return new Error(`${kind}: ${message}`);
}
