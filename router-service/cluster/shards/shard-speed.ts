/** How fast a shard and the way to it are, as moving averages over its answers; decides nothing. */

import { type SpeedSample, type SteadySpeed, SteadySpeedMeter } from "./steady-speed.ts";

/** What the last few samples say; undefined where they say nothing yet. */
export interface MeasuredSpeed {
  /** Time of a dispatch on the wire and in both processes, whatever its size. */
  readonly roundTripSeconds: number | undefined;
  /** What larger dispatches add to it; undefined as well where they add nothing. */
  readonly bytesPerSecond: number | undefined;
  readonly secondsPerPair: number | undefined;
  /** Answers that this was measured on. */
  readonly samples: number;
}

/** The first answers compile kernels and touch memory for the first time: they say how fast nothing will be again. */
const FIRST_SAMPLES = 4;

/** What no pair takes less than: shards tell their times in whole microseconds. */
const LEAST_SECONDS = 1e-9;

/** Weight of the newest sample: about the last 30 count. */
const NEWEST = 1 / 16;

/** A straight line through samples that count the less the older they are. */
class FadingLine {
  #weight = 0;
  #x = 0;
  #y = 0;
  #xx = 0;
  #xy = 0;

  add(x: number, y: number): void {
    const keep = 1 - NEWEST;
    this.#weight = this.#weight * keep + NEWEST;
    this.#x = this.#x * keep + x * NEWEST;
    this.#y = this.#y * keep + y * NEWEST;
    this.#xx = this.#xx * keep + x * x * NEWEST;
    this.#xy = this.#xy * keep + x * y * NEWEST;
  }

  /** Where x = 0, and what each x adds; neither below 0. Undefined before the first sample. */
  get fit(): { readonly base: number; readonly slope: number } | undefined {
    if (this.#weight === 0) return undefined;
    const x = this.#x / this.#weight;
    const y = this.#y / this.#weight;
    const spread = this.#xx / this.#weight - x * x;
    // Dispatches of one size say nothing of what a byte costs.
    const slope = spread > 0.01 * x * x ? (this.#xy / this.#weight - x * y) / spread : 0;
    const bounded = Math.min(Math.max(0, slope), x > 0 ? y / x : 0);
    return { base: Math.max(0, y - bounded * x), slope: bounded };
  }

  get mean(): { readonly x: number; readonly y: number } {
    return { x: this.#x, y: this.#y };
  }
}

/** The moving averages of one shard. */
export class ShardSpeed {
  readonly #wire = new FadingLine();
  readonly #compute = new FadingLine();
  /** The same without the first samples. */
  readonly #steadyWire = new FadingLine();
  readonly #steadyCompute = new FadingLine();
  readonly #meter = new SteadySpeedMeter();
  #queueSeconds = 0;
  #samples = 0;

  /** Takes note of an answer at a time, seconds of any clock that only goes forward. */
  observe(sample: SpeedSample, at: number): void {
    const { bytes, pairs, seconds, queueSeconds, computeSeconds } = sample;
    const wireSeconds = Math.max(0, seconds - queueSeconds - computeSeconds);
    this.#wire.add(bytes, wireSeconds);
    this.#compute.add(pairs, computeSeconds);
    this.#queueSeconds += (queueSeconds - this.#queueSeconds) * NEWEST;
    this.#samples++;
    if (this.#samples <= FIRST_SAMPLES) return;
    this.#steadyWire.add(bytes, wireSeconds);
    this.#steadyCompute.add(pairs, computeSeconds);
    this.#meter.observe(sample, at);
  }

  /** What plans take the shard for. */
  get steady(): SteadySpeed {
    return this.#meter.steady;
  }

  /** What the samples say but the first ones, which are those of a start. */
  get measured(): MeasuredSpeed {
    const wire = this.#steadyWire.fit;
    const { x: pairs, y: compute } = this.#steadyCompute.mean;
    return {
      roundTripSeconds: wire?.base,
      bytesPerSecond: wire === undefined || wire.slope === 0 ? undefined : 1 / wire.slope,
      secondsPerPair: pairs > 0 ? Math.max(LEAST_SECONDS, compute / pairs) : undefined,
      samples: Math.max(0, this.#samples - FIRST_SAMPLES),
    };
  }

  /** Forecast for a dispatch, seconds; undefined before the first answer. */
  expectedSeconds(bytes: number, pairs: number): number | undefined {
    const wire = this.#wire.fit;
    const compute = this.#compute.fit;
    if (wire === undefined || compute === undefined) return undefined;
    const computing = compute.base + compute.slope * pairs;
    return wire.base + wire.slope * bytes + this.#queueSeconds + computing;
  }
}
