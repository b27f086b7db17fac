/**
 * How a waiting process asks the GPU whether it is done.
 *
 * dawn.node asks by `setImmediate`, without a pause for as long as anything is awaited, and with a new function each
 * time. That takes a whole core, which a software GPU would compute on, and hundreds of megabytes of garbage a minute.
 * Here it asks without a pause in the first moments of a wait only, so that a fast GPU is answered at once; after that
 * the thread sleeps for a moment before each question: what that costs and saves is in bench/RESULTS.md.
 */

/** How long a wait is asked for without a pause, milliseconds. */
const EAGER_MS = 0.2;

/** Sleep before each question after that, milliseconds: less than a timer can do, and short enough for other work to wait. */
const SLEEP_MS = 0.1;

type Poll = () => void;

const immediately = globalThis.setImmediate;
const sleeper = new Int32Array(new SharedArrayBuffer(4));
let eagerUntil = 0;

/**
 * dawn.node's polls are unnamed native functions without parameters; nobody else hands such a function to setImmediate:
 * the function that resolves a promise has one.
 */
function isPoll(callback: unknown): callback is Poll {
  if (typeof callback !== "function" || callback.name !== "" || callback.length > 0) return false;
  return Function.prototype.toString.call(callback).includes("[native code]");
}

function sleepAndPoll(poll: Poll): void {
  if (performance.now() >= eagerUntil) Atomics.wait(sleeper, 0, 0, SLEEP_MS);
  poll();
}

function pacedImmediate(callback: (...args: unknown[]) => void, ...args: unknown[]) {
  return isPoll(callback) ? immediately(sleepAndPoll, callback) : immediately(callback, ...args);
}

/** Takes over dawn.node's polling; to be called before the first WebGPU instance of the process. */
export function pacePolling(): void {
  Object.defineProperties(pacedImmediate, Object.getOwnPropertyDescriptors(immediately));
  globalThis.setImmediate = pacedImmediate as typeof setImmediate;
}

/** Maps the first bytes of a buffer for reading; a wait begins with eager questions. Rejects where the device is lost. */
export async function mapForReading(buffer: GPUBuffer, bytes: number): Promise<void> {
  eagerUntil = performance.now() + EAGER_MS;
  await buffer.mapAsync(GPUMapMode.READ, 0, bytes);
}
