/** The load generator as a program: `switchyard bench` and `npm run bench -- serve`. */

import { writeFile } from "node:fs/promises";

import { loadConfig } from "../core/platform/config.ts";
import { createLogger } from "../core/platform/log.ts";
import { createProgressView } from "../core/platform/progress.ts";
import { generateLoad } from "./load/generate.ts";
import { joinGoodput, loadAbout, loadSchema } from "./load/options.ts";
import { failureLines, resultJson, summaryTable } from "./load/result.ts";

/**
 * Runs the load generator: prints a table, writes `--save-result`. Flags that it can not read end the process.
 * Returns the exit status: 0, or 1 where requests failed or the server can not be used.
 */
export async function runBenchCommand(argv: string[]): Promise<number> {
  const options = loadConfig(loadSchema, loadAbout, joinGoodput(argv));
  const date = new Date().toISOString();
  const progress = createProgressView(createLogger("bench", "silent"));
  try {
    const figures = await generateLoad(options, (done) =>
      progress.update("requests", done, options.numPrompts),
    );
    progress.close();
    console.log(summaryTable([[figures.model, figures.summary]]));
    for (const line of failureLines(figures.summary)) console.log(line);
    if (options.saveResult !== undefined) {
      const { numPrompts, requestRate, burstiness, maxConcurrency } = options;
      const backend = options.endpoint === "chat" ? "openai-chat" : "openai";
      const { model: modelId, summary, records } = figures;
      const result = resultJson(
        { date, backend, modelId, numPrompts, requestRate, burstiness, maxConcurrency },
        summary,
        records,
      );
      await writeFile(options.saveResult, `${JSON.stringify(result, null, 1)}\n`);
    }
    return figures.summary.failed > 0 ? 1 : 0;
  } catch (error) {
    progress.close();
    console.error(`switchyard bench: ${(error as Error).message}`);
    return 1;
  }
}
