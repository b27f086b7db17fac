/** Looks of the planner at shards whose measured speeds wander as they do beside other work: when it moves experts, and when not. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { moeLayers } from "../../../../core/model/config.ts";
import { readModelConfig } from "../../../../core/model/load-config.ts";
import type { Placement } from "../../../../core/placement/placement.ts";
import { type PlacedLayers, planPlacement } from "../../../../core/placement/planner.ts";
import { drawNormal, seededRandom } from "../../../../core/random.ts";
import { addWindow, emptyHistory, forecastLoad } from "../../../../core/statistics/forecast.ts";
import { bytesIn } from "../../../../router-service/cluster/planning/held-bytes.ts";
import { judge, type Look } from "../../../../router-service/cluster/planning/plan-decision.ts";
import { plannerInput } from "../../../../router-service/cluster/planning/planner-input.ts";
import {
  afterMove,
  firstStanding,
  standsFor,
} from "../../../../router-service/cluster/planning/standing.ts";
import { SteadySpeedMeter } from "../../../../router-service/cluster/shards/steady-speed.ts";
import { TINY_MODEL } from "../../../../bench/rig/cluster.ts";

const config = await readModelConfig(TINY_MODEL);
const layers = moeLayers(config);
const { numExperts, numExpertsPerToken: topK } = config;
const cells = layers.length * numExperts;

/** Seconds between two looks, and answers of each shard in one of them. */
const INTERVAL = 10;
const ANSWERS_PER_SECOND = 10;
const TOKENS_PER_STEP = 4;
const STEPS_PER_SECOND = 3;
const SHARDS = 3;
const SECONDS_PER_PAIR = 1e-3;

/** What is so from one time on. */
interface World {
  /** How many times slower than the others each shard is. */
  readonly slow: readonly number[];
  /** The shard whose experts of the first placement are chosen more often than the others'; absent: none. */
  readonly hot?: number;
}

/** A cluster of three shards with room for half as many copies again, looked at every 10 seconds. */
class Simulation {
  readonly #normal: () => number;
  readonly #random: () => number;
  readonly #meters = Array.from({ length: SHARDS }, () => new SteadySpeedMeter());
  /** Logarithms of how much slower each shard is for now. */
  readonly #drift = new Float64Array(SHARDS);
  #history = emptyHistory({ numMoeLayers: layers.length, numExperts, topK });
  #current: Placement = { epoch: 1, layers: inTurns() };
  #standing = firstStanding(0);
  #last: Look | undefined;
  #now = 0;

  constructor(seed: number) {
    this.#random = seededRandom(seed);
    this.#normal = () => drawNormal(this.#random);
  }

  /** Serves for 10 seconds, then looks; true where a placement is published. */
  look(world: World): boolean {
    this.#serve(world);
    const window = {
      seconds: INTERVAL,
      steps: INTERVAL * STEPS_PER_SECOND,
      series: [this.#count(world)],
    };
    this.#history = addWindow(this.#history, window, []);
    const { load, deviation } = forecastLoad(this.#history, { queued: [] });
    const memoryBytes = (1.5 * 1e5 * cells) / SHARDS;
    const shards = this.#meters.map(({ steady }, rank) => ({
      rank,
      memoryBytes,
      draining: false,
      secondsPerPair: steady.secondsPerPair,
      rttSeconds: steady.roundTripSeconds,
      bytesPerSecond: steady.bytesPerSecond,
      loadBytesPerSecond: 1e8,
      spread: steady.spread,
    }));
    const facts = {
      config,
      formatOf: () => "f16" as const,
      wire: "f16" as const,
      shards,
      expected: { load, deviation },
      current: this.#current,
      moves: { bytes: 1e9, steps: STEPS_PER_SECOND * standsFor(this.#standing, this.#now) },
      minCopies: 1,
    };
    const plan = planPlacement(plannerInput(facts));
    const { decision, look } = judge({
      plan,
      current: this.#current,
      facts,
      bytesOf: bytesIn(facts),
      last: this.#last,
      atMs: this.#now * 1000,
      leastMs: INTERVAL * 1500,
    });
    this.#last = look;
    if (!decision.publish) return false;
    const placed = plan.stages.at(-1) ?? this.#current.layers;
    this.#current = { epoch: this.#current.epoch + 1, layers: placed };
    this.#standing = afterMove(this.#standing, this.#now);
    return true;
  }

  /** Answers whose times wander: by a fifth from one second to the next, slowly by a tenth, and now and then by a lot. */
  #serve({ slow }: World): void {
    for (const [rank, meter] of this.#meters.entries()) {
      for (let n = 0; n < INTERVAL * ANSWERS_PER_SECOND; n++) {
        if (n % ANSWERS_PER_SECOND === 0) {
          this.#drift[rank] = 0.9 * this.#drift[rank] + 0.1 * 0.44 * this.#normal();
        }
        const hiccup = this.#random() < 0.02 ? 10 : 1;
        const factor = slow[rank] * hiccup * Math.exp(this.#drift[rank] + 0.2 * this.#normal());
        const pairs = 1 + Math.floor(this.#random() * 2 * TOKENS_PER_STEP);
        const computeSeconds = factor * (1e-3 + pairs * SECONDS_PER_PAIR);
        const seconds = factor * 1e-3 + computeSeconds;
        const sample = { bytes: pairs * 400, pairs, seconds, queueSeconds: 0, computeSeconds };
        meter.observe(sample, this.#now + n / ANSWERS_PER_SECOND);
      }
    }
    this.#now += INTERVAL;
  }

  /** Each token's pairs, drawn one by one: half of them among the experts of the hot shard; with 40 %, copies do without a move. */
  #count({ hot }: World) {
    const tokens = INTERVAL * STEPS_PER_SECOND * TOKENS_PER_STEP;
    const expertTokens = new Float64Array(cells);
    for (let pair = 0; pair < tokens * topK * layers.length; pair++) {
      const layer = Math.floor(pair / (tokens * topK));
      const any = Math.floor(this.#random() * numExperts);
      const isHot = hot !== undefined && this.#random() < 0.5;
      const expert = isHot ? any - (any % SHARDS) + hot : any;
      expertTokens[layer * numExperts + expert]++;
    }
    return { task: `${hot}`, phase: "decode" as const, tokens, expertTokens };
  }
}

/** Expert e on shard e mod SHARDS. */
function inTurns(): PlacedLayers {
  const replicas = Array.from({ length: numExperts }, (_, expert) => [
    { rank: expert % SHARDS, share: 1 },
  ]);
  return new Map(layers.map((layer) => [layer, replicas]));
}

const EVEN: World = { slow: [1, 1, 1] };

/** Looks within which something that changed for good has led to a placement: a minute and a half. */
const BOUND = 9;

/** The looks, of so many, that published a placement. */
function publishing(simulation: Simulation, world: World, looks: number): number[] {
  return Array.from({ length: looks }, (_, n) => n).filter(() => simulation.look(world));
}

test("shards of steady speed that is measured with noise keep their placement", () => {
  // Planned from averages over the last 30 answers, without a doubt, they get 9 placements.
  const published = [1, 2, 3, 4].flatMap((seed) => publishing(new Simulation(seed), EVEN, 50));
  assert.deepEqual(published, []);
});

test("a shard that is half as fast for good leads to one placement, soon", () => {
  for (const seed of [1, 2, 3]) {
    const simulation = new Simulation(seed);
    publishing(simulation, EVEN, 15);
    const looks = publishing(simulation, { slow: [1, 2, 1] }, 25);
    assert.ok(looks.length === 1 && looks[0] < BOUND, `seed ${seed}: at looks ${looks.join()}`);
  }
});

test("another task, whose experts are on another shard, leads to one placement, soon", () => {
  for (const seed of [1, 2, 3]) {
    const simulation = new Simulation(seed);
    publishing(simulation, { ...EVEN, hot: 0 }, 15);
    const looks = publishing(simulation, { ...EVEN, hot: 1 }, 25);
    assert.ok(looks.length === 1 && looks[0] < BOUND, `seed ${seed}: at looks ${looks.join()}`);
  }
});
