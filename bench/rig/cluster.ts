/** A cluster of real processes for a test file: one router, any number of shards, on free ports. */

import { startService, type ServiceProcess } from "./service-process.ts";
import { waitFor } from "./wait-for.ts";

/** The tiny checkpoint with random weights whose logits and continuations are known; it has no tokenizer. */
export const TINY_MODEL = "test/goldens/qwen2_moe";

/** The trained model that the repository ships. */
export const DEMO_MODEL = "models/demo-moe";

/** What the cluster is made of. Flags are as on the command line. */
export interface ClusterOptions {
  readonly shards: number;
  /** Default: the tiny model. */
  readonly model?: string;
  /** Default: webgpu, so that a missing driver fails instead of hiding. */
  readonly device?: "auto" | "webgpu" | "cpu";
  /** Default: f32. */
  readonly weights?: "auto" | "f16" | "f32";
  /** Default: f32. */
  readonly wire?: "f16" | "f32";
  readonly routerFlags?: readonly string[];
  readonly shardFlags?: readonly string[];
  /** Changes to the environment of all processes. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** Further changes to that of each shard, by rank. */
  readonly shardEnv?: readonly Readonly<Record<string, string | undefined>>[];
  /** Port at which the router is to reach the shard that listens on this one; default: the same. */
  readonly portOfShard?: (port: number) => Promise<number>;
}

/** The running cluster. */
export interface Cluster {
  /** Scheme, host and port of the HTTP API. */
  readonly url: string;
  /** Host and port of the gRPC API. */
  readonly grpcAddress: string;
  readonly router: ServiceProcess;
  /** By rank. */
  readonly shards: readonly ServiceProcess[];
  /** Starts the shard of this rank again, at its address. */
  restartShard(rank: number): Promise<void>;
  /** What all processes wrote, for messages of failures. */
  output(): string;
  close(): Promise<void>;
}

/** Starts the processes and waits until the router is healthy. Rejects with their output where they do not come up. */
export async function startCluster(options: ClusterOptions): Promise<Cluster> {
  const { model = TINY_MODEL, device = "webgpu", weights = "f32", wire = "f32", env } = options;
  const common = ["--model", model, "--device", device, "--weights", weights];
  const startShard = (rank: number, port: number) =>
    startService({
      name: `shard ${rank}`,
      script: "expert-service/main.ts",
      argv: [...common, "--rank", `${rank}`, "--port", `${port}`, ...(options.shardFlags ?? [])],
      env: { ...env, ...options.shardEnv?.[rank] },
    });

  const started = await Promise.allSettled(
    Array.from({ length: options.shards }, (_, rank) => startShard(rank, 0)),
  );
  const shards = started.flatMap((result) => (result.status === "fulfilled" ? result.value : []));
  const failed = started.find((result) => result.status === "rejected");
  let router: ServiceProcess | undefined;
  const output = () =>
    [...(router ? [router] : []), ...shards]
      .map((service) => `--- ${service.name}\n${service.output()}`)
      .join("\n");
  const close = async () => {
    await router?.stop();
    await Promise.all(shards.map((shard) => shard.stop()));
  };
  try {
    if (failed) throw failed.reason;
    const { portOfShard = async (port: number) => port } = options;
    const ports = await Promise.all(shards.map(({ ready }) => portOfShard(ready.port ?? 0)));
    const addresses = ports.map((port) => `127.0.0.1:${port}`);
    const shardsFlag = addresses.length > 0 ? ["--shards", addresses.join(",")] : [];
    const ownPorts = ["--http-port", "0", "--grpc-port", "0"];
    router = await startService({
      name: "router",
      script: "router-service/main.ts",
      argv: [...common, "--wire", wire, ...ownPorts, ...shardsFlag, ...(options.routerFlags ?? [])],
      env,
    });
    const url = `http://127.0.0.1:${router.ready.httpPort}`;
    await waitFor("a healthy router", () => isHealthy(url), 30_000);
    return {
      url,
      grpcAddress: `127.0.0.1:${router.ready.grpcPort}`,
      router,
      shards,
      async restartShard(rank) {
        const { port = 0 } = shards[rank].ready;
        shards[rank] = await startShard(rank, port);
      },
      output,
      close,
    };
  } catch (error) {
    await close();
    throw new Error(`the cluster does not come up: ${String(error)}\n${output()}`, {
      cause: error,
    });
  }
}

/** Whether GET /health answers 200 just now. */
export async function isHealthy(url: string): Promise<boolean> {
  const response = await fetch(`${url}/health`, { signal: AbortSignal.timeout(2000) });
  await response.body?.cancel();
  return response.ok;
}
