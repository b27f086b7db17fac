/** Contenders take turns: goldens first, then every load in every round. */

import { errorMessage } from "../../core/error-message.ts";
import type { Contender, Entrant } from "./contender.ts";
import { type Agreement, checkGoldens, type Golden, type Load, measure } from "./loads.ts";
import type { Rates } from "./report.ts";

/** What is run. */
export interface RoundsOptions {
  /** The first is the one that others are compared with. */
  readonly entrants: readonly Entrant[];
  readonly loads: readonly Load[];
  readonly rounds: number;
  /** Checked before anything is timed; empty: nothing is known. */
  readonly goldens: readonly Golden[];
  /** Prompts of a load's round, the same for all contenders; no two rounds share one. */
  readonly prompts: (load: Load, round: number) => readonly (readonly number[])[];
  /** Only one contender is open at a time: for models that fit the device only once. */
  readonly oneAtATime: boolean;
  readonly onTurn: (what: string) => void;
}

/** A contender that was measured, or why it was not. */
export interface Outcome {
  readonly name: string;
  readonly device?: string;
  readonly details?: string;
  readonly agreements?: readonly Agreement[];
  /** Of the loads' prompts in the warm-up: how many first tokens are those of the first contender. */
  readonly firstIds?: { readonly same: number; readonly of: number };
  readonly problem?: string;
}

/** Greedy ids are not what they must be. */
export class WrongIdsError extends Error {
  override readonly name = "WrongIdsError";
}

/** Tokens of a warm-up: enough to run every kernel that the load will. */
const WARM_UP_TOKENS = 3;

/** Measures all; a contender that fails is left out from then on, with the reason. Rejects where the first one fails. */
export async function runRounds(
  options: RoundsOptions,
): Promise<{ readonly rates: readonly Rates[]; readonly outcomes: readonly Outcome[] }> {
  const seats = options.entrants.map((entrant) => new Seat(entrant, options));
  const [own] = seats;
  const checkOwn = () => {
    if (own.problem !== undefined) throw own.problem;
  };
  try {
    for (const seat of seats) {
      await seat.turn("check and warm-up", (contender) => seat.prepare(contender, own));
      checkOwn();
    }
    for (let round = 1; round <= options.rounds; round++) {
      if (options.oneAtATime) {
        for (const seat of seats) {
          await seat.turn(`round ${round}`, async (contender) => {
            for (const load of options.loads) await seat.measure(contender, load, round);
          });
          checkOwn();
        }
        continue;
      }
      for (const load of options.loads)
        for (const seat of seats) {
          await seat.turn(`round ${round}: ${load.name}`, (contender) =>
            seat.measure(contender, load, round),
          );
          checkOwn();
        }
    }
    return {
      rates: seats.filter(({ problem }) => problem === undefined).flatMap((seat) => seat.rates()),
      outcomes: seats.map((seat) => seat.outcome()),
    };
  } finally {
    for (const seat of seats) await seat.close();
  }
}

/** An entrant with what is known of it so far. */
class Seat {
  problem: Error | undefined;
  readonly #entrant: Entrant;
  readonly #options: RoundsOptions;
  readonly #rates = new Map<string, number[]>();
  /** First token of every prompt of the warm-up. */
  readonly #firstIds: number[] = [];
  #contender: Contender | undefined;
  #facts: Omit<Outcome, "name"> = {};

  constructor(entrant: Entrant, options: RoundsOptions) {
    this.#entrant = entrant;
    this.#options = options;
  }

  /** Opens the contender where it is closed and lets it act; what it throws is its problem. */
  async turn(what: string, act: (contender: Contender) => Promise<void>): Promise<void> {
    if (this.problem !== undefined) return;
    this.#options.onTurn(`${this.#entrant.name}: ${what}`);
    try {
      this.#contender ??= await this.#entrant.open();
      const { device, details } = this.#contender;
      this.#facts = { ...this.#facts, device, details };
      await act(this.#contender);
    } catch (error) {
      this.problem = error instanceof Error ? error : new Error(errorMessage(error));
    }
    if (this.#options.oneAtATime || this.problem !== undefined) await this.close();
  }

  /** Checks goldens, and runs every load once. Throws WrongIdsError. */
  async prepare(contender: Contender, own: Seat): Promise<void> {
    const { goldens, loads, prompts } = this.#options;
    const { repeats, tokenwiseGoldens } = this.#entrant;
    const agreements = await checkGoldens(contender, goldens, tokenwiseGoldens);
    this.#facts = { ...this.#facts, agreements };
    const wrong = agreements.find(({ same, of }) => same < repeats * of);
    if (wrong !== undefined) {
      const { golden, same, of } = wrong;
      throw new WrongIdsError(
        `${this.#entrant.name}: golden ${golden}: ${same} of ${of} greedy ids are right, then they differ`,
      );
    }
    for (const load of loads) {
      const numTokens = Math.min(load.outputLen, WARM_UP_TOKENS);
      const { tokenIds } = await contender.generate(prompts(load, 0), numTokens);
      this.#firstIds.push(...tokenIds.map(([first]) => first));
    }
    const same = this.#firstIds.filter((id, i) => id === own.#firstIds[i]).length;
    this.#facts = { ...this.#facts, firstIds: { same, of: this.#firstIds.length } };
  }

  async measure(contender: Contender, load: Load, round: number): Promise<void> {
    const rate = await measure(contender, load, this.#options.prompts(load, round));
    const rates = this.#rates.get(load.name) ?? [];
    rates.push(rate);
    this.#rates.set(load.name, rates);
  }

  rates(): Rates[] {
    const contender = this.#entrant.name;
    return Array.from(this.#rates, ([load, perRound]) => ({ contender, load, perRound }));
  }

  outcome(): Outcome {
    return { name: this.#entrant.name, ...this.#facts, problem: this.problem?.message };
  }

  async close(): Promise<void> {
    const contender = this.#contender;
    this.#contender = undefined;
    await contender?.close();
  }
}
