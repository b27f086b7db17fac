/** Steps on the device: whose tokens each computes, and what is to be freed when it is done. */

import type { ActiveRequest } from "./active-request.ts";
import type { PlannedBatch } from "./batch.ts";
import type { StepResult } from "./model-runner.ts";
import type { StepSequence } from "./observer.ts";
import type { Sequence } from "./sequence.ts";

/** A step as it is planned. */
export interface Step extends PlannedBatch {
  readonly startedAt: number;
  /** Its parts as observers see them. */
  readonly sequences: readonly StepSequence[];
}

/** A step on the device. */
export interface Flight {
  readonly step: Step;
  /** Those whose tokens it computes and who still want them. */
  readonly members: Set<ActiveRequest>;
  readonly abort: AbortController;
  /** Sequences that ended meanwhile; their blocks are free after it. */
  readonly departed: Sequence[];
  /** Undefined where the step failed. */
  readonly result: Promise<StepResult | undefined>;
}

/** Runs a step for its members; never rejects. */
export type RunStep = (
  step: Step,
  members: ReadonlySet<ActiveRequest>,
  signal: AbortSignal,
) => Promise<StepResult | undefined>;

/** The steps in flight, in order; the engine has two at most. */
export class Flights {
  readonly #run: RunStep;
  #flights: readonly Flight[] = [];

  constructor(run: RunStep) {
    this.#run = run;
  }

  /** Starts a step. */
  start(step: Step, members: Set<ActiveRequest>): Flight {
    const abort = new AbortController();
    const result = this.#run(step, members, abort.signal);
    const flight = { step, members, abort, departed: [], result };
    this.#flights = [...this.#flights, flight];
    return flight;
  }

  /**
   * Takes a request out of its steps, and aborts those that nobody waits for any more. False where none computes for
   * it; else its sequence departs with the last that does.
   */
  leave(active: ActiveRequest): boolean {
    const flights = this.#flights.filter(({ members }) => members.delete(active));
    for (const { members, abort } of flights) if (members.size === 0) abort.abort();
    flights.at(-1)?.departed.push(active.sequence);
    return flights.length > 0;
  }

  /** Takes note that a step is done. */
  end(flight: Flight): void {
    this.#flights = this.#flights.filter((other) => other !== flight);
  }
}
