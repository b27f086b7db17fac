/** The remote half of `runExperts`: rows out to the copies of their experts, partial sums back. */

import { packRows, type WireSetting } from "../../../core/wire-rows.ts";
import type { RunExperts } from "../../engine/run-experts.ts";
import { Attempts, type DispatchReport } from "./attempts.ts";
import { CopyChooser } from "./choose-copies.ts";
import { combine } from "./dispatch.ts";
import { LateWatch } from "./late-watch.ts";
import { LayerCall, type RecoveryObserver } from "./layer-call.ts";
import type { Directory } from "../reach.ts";

/** What the remote experts need of their cluster. */
export interface RemoteExpertsOptions extends RecoveryObserver {
  readonly hiddenSize: number;
  readonly numExperts: number;
  /** Indices of the MoE layers. */
  readonly layers: readonly number[];
  readonly wire: WireSetting;
  readonly dispatchTimeoutMs: number;
  /** Milliseconds that a layer waits for experts to have a copy. */
  readonly copyWaitMs: number;
  readonly directory: Directory;
  /** Copies take their planned shares of the rows; default: each row goes where it is done soonest. */
  readonly splitByShares?: boolean;
  /** Called when a layer's rows are the shards' to compute, and when they are no more. */
  readonly onCall?: (began: boolean) => void;
  readonly onDispatch?: (report: DispatchReport) => void;
}

/** Makes `runExperts` over shards. It rejects with an UnavailableError where rows can not be computed in time. */
export function createRemoteExperts(options: RemoteExpertsOptions): RunExperts {
  const { hiddenSize, numExperts, wire, directory } = options;
  const chooser = new CopyChooser(hiddenSize, options.splitByShares);
  const lateWatch = new LateWatch(directory.changes);
  const calls = new Map(
    options.layers.map((layer) => {
      const { dispatchTimeoutMs, onDispatch } = options;
      const ofLayer = { layer, hiddenSize, dispatchTimeoutMs, directory, onDispatch };
      const attempts = new Attempts(ofLayer);
      return [layer, { ...options, layer, chooser, attempts, lateWatch }];
    }),
  );
  return async (layer, hiddenStates, routing) => {
    const { rows, routing: chosen } = await routing.read();
    routing.signal.throwIfAborted();
    const call = calls.get(layer);
    if (call === undefined) throw new RangeError(`layer ${layer} is not an MoE layer`);
    const packed = packRows(rows, hiddenSize, wire);
    options.onCall?.(true);
    try {
      const parts = await new LayerCall(call, routing, chosen, packed).run(numExperts);
      return { kind: "host", values: combine(hiddenStates.numTokens, hiddenSize, parts) };
    } finally {
      options.onCall?.(false);
    }
  };
}
