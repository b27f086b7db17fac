/** What is wrong with a configuration file, value by value. */

import type { z } from "zod";

import { shownJson } from "./checkpoint/json-file.ts";

/** One value of a configuration that the engine does not take. */
export interface ConfigProblem {
  readonly name: string;
  readonly value: unknown;
  readonly expectation: string;
}

/** A configuration file asks for what the engine does not compute, or contradicts itself. */
export class ModelConfigError extends Error {
  override readonly name = "ModelConfigError";
  readonly file: string;
  readonly problems: readonly ConfigProblem[];
  constructor(file: string, problems: readonly ConfigProblem[]) {
    super(`${file}: ${problems.map(describeProblem).join("; ")}`);
    this.file = file;
    this.problems = problems;
  }
}

function describeProblem({ name, value, expectation }: ConfigProblem): string {
  return `${name} is ${shownJson(value)}, expected ${expectation}`;
}

/** A zod error as problems by field name; the schema's messages are the expectations. */
export function zodProblems(error: z.ZodError, raw: unknown): ConfigProblem[] {
  return error.issues.map((issue) => {
    let value: unknown = raw;
    for (const key of issue.path) {
      value =
        typeof value === "object" && value !== null
          ? (value as Record<PropertyKey, unknown>)[key]
          : undefined;
    }
    return { name: issue.path.join("."), value, expectation: issue.message };
  });
}
