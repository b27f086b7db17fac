/** The label of a request's kind in the routing statistics. */

import { InvalidRequestError } from "../engine/errors.ts";
import { shown } from "./field-errors.ts";

const LABEL = /^[a-z0-9_-]{1,32}$/;

/** The label, "default" where none is given. Throws InvalidRequestError that names the field. */
export function taskLabel(value: string | undefined, field: string): string {
  if (value === undefined) return "default";
  if (LABEL.test(value)) return value;
  const limit = "expected 1 to 32 characters of a-z, 0-9, _ and -";
  throw new InvalidRequestError(`${field}: ${limit}, got ${shown(value)}`, field);
}
