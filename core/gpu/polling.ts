/**
 * How a waiting process asks the GPU whether it is done.
 *
 * dawn.node asks by `setImmediate`, without a pause for as long as anything is awaited, and with a new function each
 * time. That takes a whole core, which a software GPU would compute on, and hundreds of megabytes of garbage a minute.
 * Here a wait is expected to take about as long as the shortest of the last few of its kind. Until shortly before
 * that the process is left to timers and sockets, or sleeps where that is too short for a timer; then it sleeps for a
 * moment before each question. Only waits that are expected to be very short, as on a fast GPU, are asked for without
 * a pause. What that costs and saves is in bench/RESULTS.md.
 */

/** How long is asked without a pause where nothing is known of a wait, and at most in one that is expected to be short, milliseconds. */
const EAGER_MS = 0.2;
const EAGER_AT_MOST_MS = 0.4;

/** Sleep before each question after that, milliseconds: less than a timer can do, and short enough for other work to wait. */
const NAP_MS = 0.05;

/** Longest sleep of the thread before the first question, milliseconds: sockets wait for as long. */
const LONGEST_NAP_MS = 0.5;

/**
 * Questions begin after this part of the expected time, less what a sleep is late by, milliseconds: else each wait would
 * be found a little longer than the last, for no other reason than that.
 */
const EXPECTED_PART = 0.85;
const SLEEP_LATE_MS = 0.15;

/** How late a timer may be, milliseconds. */
const TIMER_LATE_MS = 1.2;

/** Waits of a kind that the next one is expected by. */
const REMEMBERED = 4;

type Poll = () => void;

const immediately = globalThis.setImmediate;
const sleeper = new Int32Array(new SharedArrayBuffer(4));

/** A wait under way: when its questions begin, and until when they are asked without a pause. */
interface Wait {
  readonly from: number;
  readonly eagerUntil: number;
}

const waits = new Set<Wait>();

/** How long the last waits on each buffer took, milliseconds, by the power of two below their number of rows. */
const lastWaits = new WeakMap<GPUBuffer, Map<number, number[]>>();

/** Questions that wait for their time: dawn.node has one per WebGPU instance, for all that is awaited of it. */
const held = new Map<Poll, NodeJS.Timeout>();

/**
 * dawn.node's polls are unnamed native functions without parameters; nobody else hands such a function to setImmediate:
 * the function that resolves a promise has one.
 */
function isPoll(callback: unknown): callback is Poll {
  if (typeof callback !== "function" || callback.name !== "" || callback.length > 0) return false;
  return Function.prototype.toString.call(callback).includes("[native code]");
}

/** Asks when it is time to: later by a timer, after a sleep, or at once. */
function ask(poll: Poll): void {
  const now = performance.now();
  let from = Infinity;
  let eager = false;
  for (const wait of waits) {
    from = Math.min(from, wait.from);
    eager ||= now < wait.eagerUntil;
  }
  const left = from === Infinity ? 0 : from - now;
  if (left >= TIMER_LATE_MS + 1) {
    const timer = setTimeout(
      () => {
        held.delete(poll);
        ask(poll);
      },
      Math.floor(left - TIMER_LATE_MS),
    );
    held.set(poll, timer);
    return;
  }
  if (!eager) Atomics.wait(sleeper, 0, 0, Math.min(LONGEST_NAP_MS, Math.max(NAP_MS, left)));
  poll();
}

/** Lets what is held be asked, or held again. */
function reconsider(): void {
  for (const [poll, timer] of held.entries().toArray()) {
    clearTimeout(timer);
    held.delete(poll);
    ask(poll);
  }
}

function pacedImmediate(callback: (...args: unknown[]) => void, ...args: unknown[]) {
  return isPoll(callback) ? immediately(ask, callback) : immediately(callback, ...args);
}

/** Takes over dawn.node's polling; to be called before the first WebGPU instance of the process. */
export function pacePolling(): void {
  Object.defineProperties(pacedImmediate, Object.getOwnPropertyDescriptors(immediately));
  globalThis.setImmediate = pacedImmediate as typeof setImmediate;
}

/** The last waits on a buffer for about as many rows. */
function lastOf(buffer: GPUBuffer, rows: number): number[] {
  const ofBuffer = lastWaits.get(buffer) ?? new Map<number, number[]>();
  lastWaits.set(buffer, ofBuffer);
  const bucket = Math.clz32(rows);
  const last = ofBuffer.get(bucket) ?? [];
  ofBuffer.set(bucket, last);
  return last;
}

/**
 * Maps the first bytes of a buffer for reading. Rejects where the device is lost.
 * @param rows how much work is waited for: waits for about as many rows take about as long
 */
export async function mapForReading(buffer: GPUBuffer, bytes: number, rows = 1): Promise<void> {
  const startedAt = performance.now();
  const last = lastOf(buffer, rows);
  const expectedMs = last.length < REMEMBERED ? 0 : Math.min(...last);
  const wait: Wait = {
    from: startedAt + expectedMs * EXPECTED_PART - SLEEP_LATE_MS,
    eagerUntil: expectedMs > EAGER_AT_MOST_MS ? 0 : startedAt + Math.max(EAGER_MS, expectedMs),
  };
  waits.add(wait);
  // What was held for an earlier wait may be too late for this one.
  if (held.size > 0) immediately(reconsider);
  try {
    await buffer.mapAsync(GPUMapMode.READ, 0, bytes);
  } finally {
    waits.delete(wait);
    if (last.push(performance.now() - startedAt) > REMEMBERED) last.shift();
  }
}
