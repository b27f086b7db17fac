/** The label of a request's kind in the routing statistics. */

import { DEFAULT_TASK, isTaskLabel, TASK_LABEL_FORMAT } from "../../core/statistics/task-labels.ts";
import { InvalidRequestError } from "../engine/errors.ts";
import { shown } from "./field-errors.ts";

/** The label, DEFAULT_TASK where none is given. Throws InvalidRequestError that names the field. */
export function taskLabel(value: string | undefined, field: string): string {
  if (value === undefined) return DEFAULT_TASK;
  if (isTaskLabel(value)) return value;
  const message = `${field}: expected ${TASK_LABEL_FORMAT}, got ${shown(value)}`;
  throw new InvalidRequestError(message, field);
}
