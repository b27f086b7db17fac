/** The forecast on recorded routing: its error and its placements beside those of each predictor: `npm run bench -- forecast`. */

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import {
  CLUSTERS,
  COMPARED,
  measureTrace,
  type Compared,
  type TraceFigures,
} from "./forecast/measure.ts";
import { traces } from "./forecast/traces.ts";

const schema = z.object({
  window: z.int().min(64).max(4096).default(512).meta({
    description: "Tokens of a window",
    placeholder: "N",
  }),
  seed: z.int().min(0).default(1).meta({
    description: "Seed of the order of tasks in the mixed traces",
    placeholder: "N",
  }),
});

const about = {
  command: "npm run bench -- forecast",
  summary:
    "Error of every predictor of expert load on recorded routing, and the imbalance of placements that are planned from it.",
};

/** Figures of every trace, with the means over all of them at the end. */
function forecastFigures(window: number, seed: number): TraceFigures[] {
  const figures = traces(window, seed).flatMap(measureTrace);
  const whole = figures.filter(({ name }) => !name.includes(": windows after"));
  const mean = (value: (one: TraceFigures) => number) =>
    whole.reduce((sum, one) => sum + value(one), 0) / whole.length;
  const of = <T>(value: (one: Compared) => T) =>
    Object.fromEntries(COMPARED.map((one) => [one, value(one)])) as Record<Compared, T>;
  return [
    ...figures,
    {
      name: "mean of the traces",
      windows: whole.reduce((sum, { windows }) => sum + windows, 0),
      error: of((one) => mean(({ error }) => error[one])),
      imbalance: of((one) =>
        CLUSTERS.map((_, i) => mean(({ imbalance: uneven }) => uneven[one][i])),
      ),
      within: [mean(({ within }) => within[0]), mean(({ within }) => within[1])],
    },
  ];
}

function table(
  figures: readonly TraceFigures[],
  columns: readonly string[],
  cells: (one: TraceFigures) => readonly string[],
): string {
  return [
    `| trace | windows | ${columns.join(" | ")} |`,
    `|---|---|${columns.map(() => "---|").join("")}`,
    ...figures.map((one) => `| ${one.name} | ${one.windows} | ${cells(one).join(" | ")} |`),
  ].join("\n");
}

/** Runs the program; returns the exit status. */
export async function runForecastCommand(argv: string[]): Promise<number> {
  const { window, seed } = loadConfig(schema, about, argv);
  const figures = forecastFigures(window, seed);
  const predictors = COMPARED.filter((one) => one !== "hindsight");
  console.log(`### Mean absolute error over the load of the next ${window} tokens\n`);
  console.log(
    `${table(figures, predictors, ({ error }) => predictors.map((one) => error[one].toFixed(3)))}\n`,
  );
  for (const [i, { shards, slots }] of CLUSTERS.entries()) {
    console.log(
      `### Imbalance over the next ${window} tokens, EPLB on ${shards} shards, ${slots} slots\n`,
    );
    console.log(
      `${table(figures, COMPARED, ({ imbalance }) => COMPARED.map((one) => imbalance[one][i].toFixed(3)))}\n`,
    );
  }
  console.log("### Loads within one and two of the forecast's standard deviations\n");
  const percent = (part: number) => `${(100 * part).toFixed(0)} %`;
  console.log(table(figures, ["within one", "within two"], ({ within }) => within.map(percent)));
  return 0;
}
