/** What is wrong with a checkpoint's files. */

/** A checkpoint does not hold what its config asks for; the message names the thing, its value and the expectation. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
}
