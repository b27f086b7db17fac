/** What the planner of one router has come to. */

/** What the loop has come to. */
export interface PlannerState {
  /** This router plans. */
  readonly leading: boolean;
  /** The Redis that routers share does not answer it; false where there is none. */
  readonly redisAway: boolean;
  /** Epoch that this router works by; 0 before the first. */
  readonly epoch: number;
  /** Placements that it published, and plans that were not worth their moves. */
  readonly published: number;
  readonly kept: number;
  /** Expected seconds of a step's MoE layers as the last plan left it; undefined before the first. */
  readonly stepSeconds: number | undefined;
  /** (max − mean) / mean of the shards' seconds, as the last plan would have it; undefined before the first. */
  readonly imbalance: number | undefined;
  /** What the last look decided. */
  readonly decision: string;
  /** Why experts without a copy can not be placed; undefined where they can. */
  readonly unplaceable: string | undefined;
}

/** Before the first look. */
export const NOTHING_PLANNED: PlannerState = {
  leading: false,
  redisAway: false,
  epoch: 0,
  published: 0,
  kept: 0,
  stepSeconds: undefined,
  imbalance: undefined,
  decision: "nothing was planned yet",
  unplaceable: undefined,
};
