/** Held-out perplexity of a served model beside its reference: `npm run bench -- perplexity`. */

import { z } from "zod";

import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { createProgressView } from "../core/platform/progress.ts";
import { serviceOptions } from "../core/platform/service-options.ts";
import {
  domainWindows,
  readReference,
  scoreWindow,
  type ScoringTarget,
} from "./held-out/scorer.ts";
import { firstServedModel } from "./load/client.ts";
import { perplexity, type WindowScore } from "./held-out/windows.ts";

/** Windows that are scored at once. */
const CONCURRENCY = 4;

const schema = z.object({
  url: z
    .url()
    .default("http://127.0.0.1:8000")
    .meta({ description: "Server: scheme, host and port", placeholder: "URL" }),
  model: serviceOptions.model,
  windows: z.int().min(1).optional().meta({
    description: "Windows of each domain, from its beginning",
    placeholder: "N",
    defaultText: "all",
  }),
});

/** One domain's perplexity here and in the reference. */
export interface DomainPerplexity {
  readonly domain: string;
  readonly scoredTokens: number;
  readonly perplexity: number;
  /** Over the same windows. */
  readonly reference: number;
}

/** Scores the windows, a few at a time, in any order. */
async function scoreAll(
  target: ScoringTarget,
  windows: readonly (readonly number[])[],
  onScore: () => void,
): Promise<WindowScore[]> {
  const scores: WindowScore[] = [];
  let next = 0;
  async function scoreInTurn(): Promise<void> {
    while (next < windows.length) {
      const index = next++;
      scores[index] = await scoreWindow(target, windows[index]);
      onScore();
    }
  }
  await Promise.all(Array.from({ length: CONCURRENCY }, scoreInTurn));
  return scores;
}

/** Measures the perplexity of every domain of the model's eval/reference.json on the server. */
export async function measurePerplexity(
  url: string,
  modelDirectory: string,
  maxWindows = Infinity,
): Promise<DomainPerplexity[]> {
  const reference = await readReference(modelDirectory);
  const target = { url, model: await firstServedModel(url) };
  const progress = createProgressView(createLogger("bench", "silent"));
  const results: DomainPerplexity[] = [];
  try {
    for (const [domain, expected] of Object.entries(reference.domains)) {
      const all = await domainWindows(modelDirectory, reference, domain);
      const windows = all.slice(0, maxWindows);
      let done = 0;
      const scores = await scoreAll(target, windows, () =>
        progress.update(`${domain} windows`, ++done, windows.length),
      );
      const referenceScores = scores.map(({ scoredTokens }, i) => ({
        nllSum: expected.window_nll[i] * scoredTokens,
        scoredTokens,
      }));
      results.push({
        domain,
        scoredTokens: scores.reduce((sum, score) => sum + score.scoredTokens, 0),
        perplexity: perplexity(scores),
        reference: perplexity(referenceScores),
      });
    }
  } finally {
    progress.close();
  }
  return results;
}

/** A Markdown table of perplexities. */
export function perplexityTable(results: readonly DomainPerplexity[]): string {
  const rows = results.map(
    ({ domain, scoredTokens, perplexity, reference }) =>
      `| ${domain} | ${scoredTokens} | ${perplexity.toFixed(4)} | ${reference.toFixed(4)} | ${(perplexity / reference).toFixed(6)} |`,
  );
  return [
    "| domain | scored tokens | perplexity over HTTP | eval/reference.json | ratio |",
    "|---|---|---|---|---|",
    ...rows,
  ].join("\n");
}

/** Runs the program; returns the exit status. */
export async function runPerplexityCommand(argv: string[]): Promise<number> {
  const about = {
    command: "npm run bench -- perplexity",
    summary: "Held-out perplexity of a served model, beside its reference.",
  };
  const options = loadConfig(schema, about, argv);
  console.log(
    perplexityTable(await measurePerplexity(options.url, options.model, options.windows)),
  );
  return 0;
}
