/** Why a placement can not be. */

/** The experts do not fit the shards, or the input of the planner contradicts itself. */
export class PlacementError extends Error {
  override readonly name = "PlacementError";
}
