/** An engine that doors can be opened over before the model is loaded. */

import { UnavailableError } from "./errors.ts";
import type { Engine, EngineEvent, EngineRequest, EngineState } from "./request.ts";

const NOTHING: EngineState = {
  running: 0,
  waiting: 0,
  freeBlocks: 0,
  totalBlocks: 0,
  preemptions: 0,
};

/** Stands for an engine that is still to come: refuses requests with UnavailableError until it is there. */
export class DeferredEngine implements Engine {
  readonly maxModelLen: number;
  #engine: Engine | undefined;

  constructor(maxModelLen: number) {
    this.maxModelLen = maxModelLen;
  }

  /** From now on requests go to this engine. */
  resolve(engine: Engine): void {
    this.#engine = engine;
  }

  /** Why requests are refused; undefined when the engine is there. */
  unavailableReason(): string | undefined {
    return this.#engine === undefined ? "the model is being loaded" : undefined;
  }

  get maxNumSeqs(): number {
    return this.#engine?.maxNumSeqs ?? 1;
  }

  room(signal: AbortSignal): Promise<void> | undefined {
    return this.#engine?.room(signal);
  }

  async *submit(request: EngineRequest): AsyncGenerator<EngineEvent, void> {
    if (this.#engine === undefined) throw new UnavailableError("the model is being loaded");
    yield* this.#engine.submit(request);
  }

  state(): EngineState {
    return this.#engine?.state() ?? NOTHING;
  }

  async close(): Promise<void> {
    await this.#engine?.close();
  }
}
