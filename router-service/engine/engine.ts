/** The loop that makes tokens: schedule → forward → sample → emit; one step ahead where the next tokens are certain to be the most likely ones. */

import { setImmediate } from "node:timers/promises";

import { errorMessage } from "../../core/error-message.ts";
import { ActiveRequest, type ActiveRequestOptions } from "./active-request.ts";
import { planBatch, type PlannedBatch, type SampleWishes } from "./batch.ts";
import { BlockPool } from "./block-pool.ts";
import { type Flight, Flights, type Step } from "./flights.ts";
import { RequestTimeoutError, UnavailableError } from "./errors.ts";
import type { ModelRunner, StepResult } from "./model-runner.ts";
import type { EngineObserver, RequestTimeline } from "./observer.ts";
import type { PendingRequest } from "./queue-watch.ts";
import { QueueRoom } from "./queue-room.ts";
import { checkRequest } from "./request-check.ts";
import type { Engine, EngineEvent, EngineRequest, EngineState } from "./request.ts";
import { followersOf, planFollowing } from "./run-ahead.ts";
import { Scheduler } from "./scheduler.ts";
import { numGenerated, type Sequence } from "./sequence.ts";
import {
  STEP_TIMEOUT_MS,
  stepFailure,
  StepTimeoutError,
  withinStepTimeout,
} from "./step-failure.ts";

/** What an engine is made of; the runner stays its maker's to close. */
export interface EngineOptions {
  readonly runner: ModelRunner;
  readonly vocabSize: number;
  readonly eosTokenIds: readonly number[];
  /** Longest prompt and completion together. */
  readonly maxModelLen: number;
  /** Sequences that run at a time; the runner's own bounds hold as well. */
  readonly maxNumSeqs: number;
  /** Tokens of a step; the runner's own bound holds as well. */
  readonly maxNumBatchedTokens: number;
  /** Requests that wait. */
  readonly maxQueue: number;
  readonly requestTimeoutMs: number;
  /** After this time a step counts as never returning, and the engine as lost; STEP_TIMEOUT_MS where absent. */
  readonly stepTimeoutMs?: number;
  /** When rows of a step were last with others to compute, milliseconds of performance.now(): that is no hang. */
  readonly lastAwayAt?: () => number;
  readonly observer?: EngineObserver;
  /** Why no new request can be served at the moment; undefined where one can. */
  readonly available?: () => string | undefined;
  /** Why requests that were taken will not get on; undefined where they will, or may wait. */
  readonly hopeless?: () => string | undefined;
  /** What steps wait for at the moment beside the device, for the error of a request whose time is over. */
  readonly waitsFor?: () => string | undefined;
  /** Milliseconds, monotonic; performance.now() where absent. */
  readonly now?: () => number;
  /** Seeds for requests that bring none; random where absent. */
  readonly randomSeed?: () => number;
}

/** An engine as main holds it: it says when it can not go on. */
export interface RunningEngine extends Engine {
  /** What runs, then what waits, both in order of arrival. */
  pending(): PendingRequest[];
  /** Settles with the reason when the engine can never make another token; not by close(). */
  readonly lost: Promise<string>;
}

/** Starts an engine; its loop sleeps while there is nothing to do. */
export function createEngine(options: EngineOptions): RunningEngine {
  return new EngineLoop(options);
}

class EngineLoop implements RunningEngine {
  readonly maxModelLen: number;
  readonly maxNumSeqs: number;
  readonly lost: Promise<string>;
  readonly #room = new QueueRoom();
  readonly #options: EngineOptions;
  readonly #observer: EngineObserver;
  readonly #activeOptions: ActiveRequestOptions;
  readonly #now: () => number;
  readonly #pool: BlockPool;
  readonly #scheduler: Scheduler;
  readonly #active = new Map<Sequence, ActiveRequest>();
  readonly #resolveLost: (reason: string) => void;
  readonly #done: Promise<void>;
  readonly #flights = new Flights((...step) => this.#forward(...step));
  #landedAt = 0;
  /** Why no request is taken any more. */
  #stopped: string | undefined;
  readonly #wishes: SampleWishes = {
    next: (sequence) => this.#request(sequence).nextWish(),
    prompt: (sequence) => this.#request(sequence).promptWish(),
  };
  #wake: () => void = () => {};
  #preemptions = 0;

  constructor(options: EngineOptions) {
    const { runner } = options;
    const lost = Promise.withResolvers<string>();
    this.lost = lost.promise;
    this.#resolveLost = lost.resolve;
    this.maxModelLen = options.maxModelLen;
    this.maxNumSeqs = Math.min(options.maxNumSeqs, runner.maxSequences);
    this.#options = options;
    this.#observer = options.observer ?? {};
    this.#now = options.now ?? (() => performance.now());
    this.#activeOptions = {
      eosTokenIds: options.eosTokenIds,
      randomSeed: options.randomSeed ?? (() => Math.floor(Math.random() * 2 ** 53)),
      now: this.#now,
      observer: this.#observer,
    };
    this.#pool = new BlockPool(runner.numBlocks);
    this.#scheduler = new Scheduler(this.#pool, {
      maxSequences: this.maxNumSeqs,
      maxTokens: Math.min(options.maxNumBatchedTokens, runner.maxTokens),
      maxSamples: runner.maxSamples,
      maxWaiting: options.maxQueue,
    });
    void runner.lost.then((reason) => this.#lose(`the device was lost: ${reason}`));
    this.#done = this.#run().catch((error: unknown) => {
      this.#lose(`the engine's loop failed: ${errorMessage(error)}`);
    });
  }

  async #run(): Promise<void> {
    let ahead: Flight | undefined;
    while (this.#stopped === undefined) {
      this.#failWhereHopeless();
      const flight = ahead ?? this.#start();
      if (flight === undefined) {
        await this.#sleep();
        continue;
      }
      ahead = this.#startAhead(flight);
      await this.#land(flight);
      await setImmediate(); // lets sockets, timers and readers act, however short the steps are
    }
    if (ahead !== undefined) await this.#land(ahead);
  }

  /** Starts what the scheduler says; undefined where there is nothing to do. */
  #start(): Flight | undefined {
    const { chunks, preempted } = this.#scheduler.schedule();
    this.#notePreempted(preempted);
    this.#room.wake(this.#numRoom());
    if (chunks.length === 0) return undefined;
    return this.#fly(planBatch(chunks, this.#wishes));
  }

  /** Starts the step after one in flight, where all that it would hold is certain but for the tokens' ids. */
  #startAhead({ step }: Flight): Flight | undefined {
    if (!this.#options.runner.runsAhead || this.#stopped !== undefined) return undefined;
    const known = followersOf(step.parts, (sequence) => this.#active.get(sequence));
    if (known === undefined || known.followers.length === 0) return undefined;
    const sequences = known.followers.map(({ sequence }) => sequence);
    if (!this.#scheduler.growAhead(sequences, known.numEnding)) return undefined;
    return this.#fly(planFollowing(known.followers, this.#wishes));
  }

  /** Waits for a step and hands its tokens out. */
  async #land(flight: Flight): Promise<void> {
    const { step } = flight;
    const result = await flight.result;
    if (result !== undefined) this.#scheduler.commit(step.parts.map(({ chunk }) => chunk));
    this.#flights.end(flight);
    for (const sequence of flight.departed) this.#scheduler.remove(sequence);
    if (result === undefined) return;
    this.#report(step, result);
    this.#emit(step, result);
  }

  async *submit(request: EngineRequest): AsyncGenerator<EngineEvent, void> {
    const active = this.#admit(request);
    try {
      for await (const event of active.events.read()) {
        if (event.type === "token") active.numDelivered++;
        yield event;
      }
    } finally {
      // A reader that leaves before the finish has what it wanted, unless its request was aborted.
      const outcome = request.signal.aborted ? "abort" : "stop";
      this.#end(active, outcome, { completionTokens: active.numDelivered });
    }
  }

  room(signal: AbortSignal): Promise<void> | undefined {
    if (this.#stopped !== undefined || this.#numRoom() > 0) return undefined;
    return this.#room.wait(signal);
  }

  /** Places for those who can wait for one: the last is left to new requests, which would be refused. */
  #numRoom(): number {
    return Math.max(1, this.#options.maxQueue - 1) - this.#scheduler.waiting.length;
  }

  state(): EngineState {
    return {
      running: this.#scheduler.running.length,
      waiting: this.#scheduler.waiting.length,
      freeBlocks: this.#pool.numFree,
      totalBlocks: this.#pool.numBlocks,
      preemptions: this.#preemptions,
    };
  }

  pending(): PendingRequest[] {
    return [...this.#active.values()];
  }

  async close(): Promise<void> {
    this.#stop("the service is stopping");
    await Promise.race([this.#done, this.lost]); // a lost device may never answer its last step
  }

  #admit(request: EngineRequest): ActiveRequest {
    const { id, signal } = request;
    const aborted = () => new DOMException(`request ${id} was aborted`, "AbortError");
    if (signal.aborted) throw aborted();
    const unavailable = this.#stopped ?? this.#options.available?.();
    if (unavailable !== undefined) throw new UnavailableError(unavailable);
    const { vocabSize, maxModelLen, requestTimeoutMs } = this.#options;
    checkRequest(request, { vocabSize, maxModelLen, numBlocks: this.#pool.numBlocks });
    const active = new ActiveRequest(request, this.#activeOptions);
    this.#scheduler.add(active.sequence);
    this.#active.set(active.sequence, active);
    active.watch(
      () => this.#end(active, "abort", { error: aborted() }),
      () => {
        const error = new RequestTimeoutError(requestTimeoutMs / 1000, this.#options.waitsFor?.());
        this.#end(active, "error", { error });
      },
      requestTimeoutMs,
    );
    this.#wake();
    return active;
  }

  #failWhereHopeless(): void {
    const { running, waiting } = this.#scheduler;
    if (running.length + waiting.length === 0) return;
    const reason = this.#options.hopeless?.();
    if (reason !== undefined) this.#fail([...running, ...waiting], reason);
  }

  #notePreempted(preempted: readonly { readonly id: string }[]): void {
    this.#preemptions += preempted.length;
    for (const { id } of preempted) this.#observer.onPreemption?.(id);
  }

  /** Waits until there is something to do. Throws where there is, but none of it can be scheduled. */
  async #sleep(): Promise<void> {
    const { running, waiting } = this.#scheduler;
    if (running.length + waiting.length > 0) {
      throw new Error(`${running.length} running and ${waiting.length} waiting requests are stuck`);
    }
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  /** Starts a planned step on the device. */
  #fly(planned: PlannedBatch): Flight {
    const startedAt = this.#now();
    const members = new Set<ActiveRequest>();
    const sequences = planned.parts.map(({ chunk: { sequence, phase, numTokens } }) => {
      const active = this.#request(sequence);
      members.add(active);
      active.scheduledAt ??= startedAt;
      const { id, task, traceContext } = active.request;
      return { requestId: id, task, phase, numTokens, ...(traceContext && { traceContext }) };
    });
    return this.#flights.start({ ...planned, startedAt, sequences }, members);
  }

  /** Runs the step; where it fails, so do the requests that it was for, and the answer is undefined. */
  async #forward(
    { batch, sequences }: Step,
    members: ReadonlySet<ActiveRequest>,
    signal: AbortSignal,
  ): Promise<StepResult | undefined> {
    try {
      const traceContext = this.#observer.stepContext?.(sequences);
      const result = this.#options.runner.forward(batch, { signal, traceContext });
      const { stepTimeoutMs = STEP_TIMEOUT_MS, lastAwayAt } = this.#options;
      return await withinStepTimeout(result, stepTimeoutMs, lastAwayAt);
    } catch (error) {
      this.#observer.onStepFailed?.({ finishedAt: this.#now(), aborted: signal.aborted });
      if (error instanceof StepTimeoutError) this.#lose(error.message);
      for (const active of members) this.#end(active, "error", { error: stepFailure(error) });
      return undefined;
    }
  }

  #emit({ parts }: Step, { samples }: StepResult): void {
    for (const part of parts) {
      const active = this.#active.get(part.chunk.sequence);
      if (active === undefined) continue; // it ended while the step was in flight
      try {
        const finished = active.take(part, samples);
        if (finished !== undefined) this.#end(active, finished);
      } catch (error) {
        this.#end(active, "error", { error: error as Error });
      }
    }
  }

  #report({ batch, startedAt, sequences }: Step, { routing }: StepResult): void {
    const numTokens = batch.tokenIds.length;
    const finishedAt = this.#now();
    // The device begins a step that was started ahead when it has done the one before.
    const began = Math.max(startedAt, this.#landedAt);
    this.#landedAt = finishedAt;
    this.#observer.onStep?.({ startedAt: began, finishedAt, sequences, numTokens, routing });
  }

  #request(sequence: Sequence): ActiveRequest {
    const active = this.#active.get(sequence);
    if (active === undefined)
      throw new Error(`sequence ${sequence.id} is scheduled but not active`);
    return active;
  }

  #fail(sequences: readonly Sequence[], reason: string): void {
    for (const sequence of sequences) {
      const active = this.#active.get(sequence);
      if (active === undefined) continue;
      this.#end(active, "error", { error: new UnavailableError(reason) });
    }
  }

  /** Ends a request: its reader hears at once, its blocks are free at once or after the step in flight. */
  #end(
    active: ActiveRequest,
    outcome: RequestTimeline["outcome"],
    how: { readonly error?: Error; readonly completionTokens?: number } = {},
  ): void {
    const { sequence } = active;
    if (!this.#active.delete(sequence)) return;
    active.unwatch();
    active.events.end(how.error);
    if (!this.#flights.leave(active)) this.#scheduler.remove(sequence);
    const completionTokens = how.completionTokens ?? numGenerated(sequence);
    this.#observer.onRequest?.(active.timeline(outcome, completionTokens));
  }

  #stop(reason: string): void {
    this.#stopped ??= reason;
    this.#fail([...this.#active.keys()], this.#stopped);
    this.#room.wake(Infinity);
    this.#wake();
  }

  #lose(reason: string): void {
    this.#stop(reason);
    this.#resolveLost(reason);
  }
}
