/** One expert shard: `switchyard shard`. */

import { loadConfig } from "../core/platform/config.ts";
import { expertAbout, expertConfigSchema } from "./config.ts";
import { runShardProcess } from "./process.ts";

await runShardProcess(loadConfig(expertConfigSchema, expertAbout));
