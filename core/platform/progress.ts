/** How far a long load is: bars on a terminal, plain log lines elsewhere, messages to a spawning launcher. */

import { MultiBar, Presets, type SingleBar } from "cli-progress";

import { tellParent } from "./lifecycle.ts";
import type { Logger } from "./log.ts";

/** What a child tells its launcher of a load. */
export interface ProgressMessage {
  readonly progress: {
    readonly label: string;
    readonly done: number;
    readonly total: number;
    /** It ended before all was done. */
    readonly stopped?: true;
  };
}

/** One load under way. */
export interface Progress {
  /** Units done so far, of the total. */
  update(done: number): void;
  /** All is done. */
  finish(): void;
  /** It ends here, before all is done. */
  stop(): void;
}

/** Where the state of any number of loads is shown. */
export interface ProgressView {
  update(label: string, done: number, total: number): void;
  /** A load ends before all is done; it may begin again. */
  stop(label: string): void;
  /** Puts a line on stderr, above the bars where there are any. */
  print(line: string): void;
  close(): void;
}

/** Messages and lines come at every so many parts of the total. */
const MESSAGE_STEPS = 50;
const LINE_STEPS = 4;

/** Starts showing a load of `total` units; a total of 0 counts as done. `what` is said of it in log lines. */
export function startProgress(
  label: string,
  total: number,
  logger: Logger,
  what = "loading",
): Progress {
  let view: ProgressView | undefined;
  const tell = stepped(MESSAGE_STEPS, (done) => {
    const told = tellParent({ progress: { label, done, total } } satisfies ProgressMessage);
    if (!told) (view ??= createProgressView(logger, what)).update(label, done, total);
  });
  const close = () => {
    view?.close();
    view = undefined;
  };
  let last = 0;
  tell(0, total);
  return {
    update: (done) => {
      last = done;
      tell(done, total);
    },
    finish: () => {
      tell(total, total);
      close();
    },
    stop: () => {
      tellParent({
        progress: { label, done: last, total, stopped: true },
      } satisfies ProgressMessage);
      view?.stop(label);
      close();
    },
  };
}

/** Shows loads on stderr: one bar each where it is a terminal, else a log line at every quarter. */
export function createProgressView(logger: Logger, what = "loading"): ProgressView {
  return process.stderr.isTTY ? createBars() : createLines(logger, what);
}

/** A log line at the begin of each load, at every quarter of it, and where it is stopped. */
export function createLines(logger: Logger, what = "loading"): ProgressView {
  const loads = new Map<string, Load & { readonly line: Step }>();
  const say = (label: string, { done, total }: Load, text: string) =>
    logger.info({ label, done, total, percent: percent(done, total) }, text);
  return {
    update: (label, done, total) => {
      const line =
        loads.get(label)?.line ??
        stepped(LINE_STEPS, (now, all) => say(label, { done: now, total: all }, what));
      loads.set(label, { line, done, total });
      line(done, total);
      // It may be loaded again later.
      if (done >= total) loads.delete(label);
    },
    stop: (label) => {
      const load = loads.get(label);
      if (load !== undefined) say(label, load, `${what} stopped`);
      loads.delete(label);
    },
    print: (line) => void process.stderr.write(`${line}\n`),
    close: () => loads.clear(),
  };
}

/** How far a load is. */
interface Load {
  readonly done: number;
  readonly total: number;
}

function createBars(): ProgressView {
  let multi = createMultiBar();
  const bars = new Map<string, SingleBar>();
  return {
    update: (label, done, total) => {
      let bar = bars.get(label);
      if (bar === undefined) {
        // It would show those that ended long ago again.
        if (!multi.isActive) multi = createMultiBar();
        bar = multi.create(total, 0, { label });
        bars.set(label, bar);
      }
      bar.setTotal(total);
      bar.update(done);
      // It may be loaded again later, with a new bar.
      if (done >= total) bars.delete(label);
    },
    stop: (label) => {
      const bar = bars.get(label);
      bar?.update({ label: `${label}: stopped` });
      bar?.stop();
      bars.delete(label);
    },
    print: (line) => {
      if (multi.isActive) multi.log(`${line}\n`);
      else process.stderr.write(`${line}\n`);
    },
    close: () => {
      bars.clear();
      multi.stop();
    },
  };
}

function createMultiBar(): MultiBar {
  return new MultiBar(
    {
      stream: process.stderr,
      format: " {bar} {percentage}% {label}",
      barsize: 30,
      hideCursor: true,
      // Bars that never end by themselves would keep the process alive and the cursor hidden.
      gracefulExit: true,
      stopOnComplete: true,
    },
    Presets.rect,
  );
}

/** Told how far a load is. */
type Step = (done: number, total: number) => void;

/** Passes on the first call, and those that enter a new one of `steps` equal parts of the total. */
function stepped(steps: number, pass: Step): Step {
  let last = -1;
  return (done, total) => {
    const step = total <= 0 ? steps : Math.floor((done / total) * steps);
    if (step <= last) return;
    last = step;
    pass(done, total);
  };
}

function percent(done: number, total: number): number {
  return total <= 0 ? 100 : Math.floor((done / total) * 100);
}
