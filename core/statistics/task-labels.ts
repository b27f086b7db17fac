/** Task labels: what kind of work a request is, as far as the routing statistics tell requests apart. */

/** Label of requests that name none. */
export const DEFAULT_TASK = "default";

/** Label that stands for every label beyond the limit. */
const OTHER_TASK = "other";

/** Labels that one process tells apart, `other` not counted. */
const MAX_TASKS = 64;

/** What a task label is made of, in words. */
export const TASK_LABEL_FORMAT = "1 to 32 characters of a-z, 0-9, _ and -";

/** Whether a string may be a task label: TASK_LABEL_FORMAT. */
export function isTaskLabel(text: string): boolean {
  return /^[a-z0-9_-]{1,32}$/.test(text);
}

/** Admits the first `limit` labels that it meets and answers `other` for all later and malformed ones. */
export class TaskLabels {
  readonly #known = new Set<string>();
  readonly #limit: number;

  constructor(limit = MAX_TASKS) {
    this.#limit = limit;
  }

  /** The label under which a task is counted. */
  resolve(task: string): string {
    if (this.#known.has(task)) return task;
    if (task === OTHER_TASK || this.#known.size >= this.#limit || !isTaskLabel(task)) {
      return OTHER_TASK;
    }
    this.#known.add(task);
    return task;
  }
}
