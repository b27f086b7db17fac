/** What the loss of a shard would take to mend: the way home of every expert. */

import { type Copy, Holdings, type StageLimits } from "./holdings.ts";
import type { PlacedLayers, PlannedShard, PlannerInput } from "./input.ts";
import { LOCAL_RANK, ranksOf } from "./placement.ts";
import { liveCurrent } from "./why.ts";

/** What it takes to give experts that are lost another home. */
export interface Recovery {
  /** Where each of them would be loaded; layer by layer. */
  readonly homes: readonly Copy[];
  /** Of them, bytes of those that have a home. */
  readonly bytes: number;
  /** Until all of them are loaded, each shard loading its own one after the other. */
  readonly seconds: number;
  /** Experts that no survivor has room for, even where others' spare copies give way. */
  readonly homeless: readonly LogicalExpert[];
}

/** What the loss of one shard means: what becomes of experts that only this shard holds. */
export interface LossRecovery extends Recovery {
  readonly rank: number;
}

type LogicalExpert = Omit<Copy, "rank">;

/** What mending takes of the planner's input. */
export type RecoveryInput = Pick<PlannerInput, "layers" | "numExperts" | "bytes" | "shards">;

/**
 * For each shard that holds something, in the order of the input: what its loss would take. Copies on ranks that are not
 * among the input's shards are not there; the routers' own devices are no shard: they are lost with their router.
 */
export function lossRecovery(input: RecoveryInput, placed: PlacedLayers): LossRecovery[] {
  const standing = { epoch: 0, layers: placed };
  const layers = liveCurrent({ ...input, current: standing });
  const held = new Set(ranksOf(standing));
  return input.shards
    .filter(({ rank }) => held.has(rank) && rank !== LOCAL_RANK)
    .map(({ rank }) => recoveryOf(rank, input, layers));
}

/** What it takes to mend what is lost already: experts that no shard of the input has a copy of. */
export function missingRecovery(input: RecoveryInput, placed: PlacedLayers): Recovery {
  const layers = liveCurrent({ ...input, current: { epoch: 0, layers: placed } });
  const missing: LogicalExpert[] = [];
  for (const [layer, replicas] of layers) {
    for (const [expert, copies] of replicas.entries()) {
      if (copies.length === 0) missing.push({ layer, expert });
    }
  }
  const survivors = input.shards.filter(({ draining }) => !draining);
  const bytesOf = sizesOf(input);
  return rehome(missing, survivors, heldBy(survivors, layers, bytesOf), bytesOf);
}

/** What the loss of one rank would take. */
function recoveryOf(lost: number, input: RecoveryInput, placed: PlacedLayers): LossRecovery {
  const bytesOf = sizesOf(input);
  const survivors = input.shards.filter(({ rank, draining }) => rank !== lost && !draining);
  const held = heldBy(survivors, placed, bytesOf);
  const last = [...held.copies()].filter(
    ({ layer, expert, rank }) => rank === lost && held.numCopies(layer, expert) === 1,
  );
  // A set may lose what is being visited.
  for (const copy of held.copies()) if (copy.rank === lost) held.remove(copy);
  return { rank: lost, ...rehome(last, survivors, held, bytesOf) };
}

function sizesOf({ layers, numExperts, bytes }: RecoveryInput): StageLimits["bytes"] {
  const indexOf = new Map(layers.map((layer, index) => [layer, index]));
  return (layer, expert) => bytes[indexOf.get(layer)! * numExperts + expert];
}

function heldBy(
  survivors: readonly PlannedShard[],
  layers: PlacedLayers,
  bytes: StageLimits["bytes"],
): Holdings {
  const memory = new Map(survivors.map(({ rank, memoryBytes }) => [rank, memoryBytes]));
  return new Holdings(layers, { memory, bytes });
}

/** Finds homes for experts without a copy on the survivors, beside what those hold. */
function rehome(
  lost: readonly LogicalExpert[],
  survivors: readonly PlannedShard[],
  held: Holdings,
  bytesOf: StageLimits["bytes"],
): Recovery {
  const spares = sparesByRank(held);
  // Large ones first: what is left over fits into less.
  const largest = lost.toSorted((a, b) => bytesOf(b.layer, b.expert) - bytesOf(a.layer, a.expert));
  const busy = new Map<number, number>();
  const homes: Copy[] = [];
  const homeless: LogicalExpert[] = [];
  let bytes = 0;
  for (const { layer, expert } of largest) {
    const size = bytesOf(layer, expert);
    const home = soonestHome(survivors, busy, { held, spares }, { layer, expert }, size);
    if (home === undefined) {
      homeless.push({ layer, expert });
      continue;
    }
    const copy = { layer, expert, rank: home.rank };
    held.add(copy);
    homes.push(copy);
    bytes += size;
    busy.set(home.rank, (busy.get(home.rank) ?? 0) + size * home.loadSecondsPerByte);
  }
  return { homes, bytes, seconds: Math.max(0, ...busy.values()), homeless };
}

/** Copies of experts that have another, by rank: what is lost has no other, so that no more come while it is re-homed. */
function sparesByRank(held: Holdings): ReadonlyMap<number, readonly Copy[]> {
  const spares = new Map<number, Copy[]>();
  for (const copy of held.copies()) {
    if (held.numCopies(copy.layer, copy.expert) < 2) continue;
    const ofRank = spares.get(copy.rank);
    if (ofRank === undefined) spares.set(copy.rank, [copy]);
    else ofRank.push(copy);
  }
  return spares;
}

/** What the survivors hold, and could give up. */
interface Survival {
  readonly held: Holdings;
  readonly spares: ReadonlyMap<number, readonly Copy[]>;
}

/** The survivor that has it loaded first, beside what it has to load already; spare copies give way on it where they must. */
function soonestHome(
  survivors: readonly PlannedShard[],
  busy: ReadonlyMap<number, number>,
  { held, spares }: Survival,
  expert: LogicalExpert,
  size: number,
): PlannedShard | undefined {
  const bySoonest = [...survivors].sort((a, b) => loadedAt(a) - loadedAt(b));
  const free = bySoonest.find(({ rank }) => held.fits({ ...expert, rank }));
  if (free !== undefined) return free;
  return bySoonest.find(({ rank }) => held.giveWay(rank, size, spares.get(rank) ?? []));

  function loadedAt({ rank, loadSecondsPerByte }: PlannedShard): number {
    return (busy.get(rank) ?? 0) + size * loadSecondsPerByte;
  }
}
