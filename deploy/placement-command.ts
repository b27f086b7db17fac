/** `switchyard placement`: where experts live, as a heat map of layers and shards. */

import { z } from "zod";

import { foreignEnvironment, loadConfig } from "../core/platform/config.ts";
import { formatPlacement, type PlacementView } from "./placement-report.ts";
import { jsonText, printAnswer } from "./print-answer.ts";
import { askRouter, routerFlags } from "./router-client.ts";

const DEFAULT_WIDTH = 100;

const schema = z.object({
  ...routerFlags,
  json: z.boolean().default(false).meta({ description: "JSON instead of text" }),
});

const about = {
  command: "switchyard placement",
  summary: "Shows where experts live and why, as a heat map of layers and shards.",
  notes:
    "Heat is a shard's expected time in a layer beside that of the layer's slowest; the number is of experts held;\n" +
    "× stands for heat where the shard is away.\n" +
    "Colours only on a terminal, and not where NO_COLOR is set.",
};

/** Runs the command; answers its exit code: 0, or 1 where there is nothing to show, with the reason on stderr. */
export async function runPlacementCommand(argv: readonly string[]): Promise<number> {
  const config = loadConfig(schema, about, argv);
  return printAnswer(about.command, async () => {
    const view = (await askRouter(config, "GET", "/v1/placement")) as PlacementView;
    const colour = process.stdout.isTTY && foreignEnvironment("NO_COLOR") === undefined;
    const width = process.stdout.columns ?? DEFAULT_WIDTH;
    return config.json ? jsonText(view) : formatPlacement(view, { width, colour, now: Date.now() });
  });
}
