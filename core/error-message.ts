/** What a thrown value says. */

/** An error's message; of what is no Error, its text. */
export function errorMessage(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
