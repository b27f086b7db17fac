/** Why a placement can not be. */

/** The experts do not fit the shards. */
export class PlacementError extends Error {
  override readonly name = "PlacementError";
}

/** The input of the planner contradicts itself; whether the experts fit is not known. */
export class PlannerInputError extends RangeError {
  override readonly name = "PlannerInputError";
}
