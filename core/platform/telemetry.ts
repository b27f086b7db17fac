/** Traces of a process, by the standard OTEL_* variables; the only one that loads the OpenTelemetry SDK, and only when asked. */

import { diag, DiagLogLevel } from "@opentelemetry/api";

import { foreignEnvironment } from "./config.ts";
import type { Log } from "./log.ts";

/** Longest wait for the last spans to be delivered, milliseconds. */
const SHUTDOWN_DEADLINE_MS = 3_000;

/** Any of these turns traces on. */
const SWITCHES = [
  "OTEL_EXPORTER_OTLP_ENDPOINT",
  "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
  "OTEL_TRACES_EXPORTER",
];

/** The traces of a process. */
export interface Telemetry {
  /** Delivers what is recorded, for three seconds at most; never rejects. */
  shutdown(): Promise<void>;
}

/** Whether the variables ask for traces; pure. */
export function wantsTraces(variable: (name: string) => string | undefined): boolean {
  if (variable("OTEL_SDK_DISABLED")?.toLowerCase() === "true") return false;
  if (variable("OTEL_TRACES_EXPORTER") === "none") return false;
  return SWITCHES.some((name) => variable(name) !== undefined);
}

/**
 * Starts recording spans where the environment asks for it, before the first span is made; otherwise it does nothing
 * and loads nothing. `service` is `switchyard-router` or `switchyard-shard`, unless the environment names the service.
 * Only traces go out: metrics are at /metrics, logs on stderr.
 */
export async function startTelemetry(
  service: string,
  log: Pick<Log, "info" | "warn">,
): Promise<Telemetry> {
  if (!wantsTraces(foreignEnvironment)) return { shutdown: async () => undefined };

  const { NodeSDK, resources } = await import("@opentelemetry/sdk-node");
  if (foreignEnvironment("OTEL_LOG_LEVEL") === undefined) reportProblemsTo(log);
  const named =
    foreignEnvironment("OTEL_SERVICE_NAME") !== undefined ||
    (foreignEnvironment("OTEL_RESOURCE_ATTRIBUTES") ?? "").includes("service.name=");
  const sdk = new NodeSDK({
    ...(named ? {} : { serviceName: service }),
    metricReaders: [],
    logRecordProcessors: [],
    instrumentations: [],
    // Without the process detector: command lines may hold passwords.
    ...(foreignEnvironment("OTEL_NODE_RESOURCE_DETECTORS") === undefined
      ? { resourceDetectors: [resources.envDetector, resources.hostDetector] }
      : {}),
  });
  sdk.start();
  log.info({ service }, "traces are recorded");
  return { shutdown: () => shutDown(sdk, log) };
}

async function shutDown(
  sdk: { readonly shutdown: () => Promise<void> },
  log: Pick<Log, "info" | "warn">,
): Promise<void> {
  const deadline = AbortSignal.timeout(SHUTDOWN_DEADLINE_MS);
  const late = new Promise<string>((resolve) => {
    deadline.addEventListener("abort", () => resolve(`not done in ${SHUTDOWN_DEADLINE_MS} ms`));
  });
  const done = sdk.shutdown().then(
    () => undefined,
    (error: unknown) => String(error),
  );
  const reason = await Promise.race([done, late]);
  if (reason !== undefined) log.warn({ reason }, "the last spans were not delivered");
}

/** The SDK's own problems, an unreachable collector for one, as warnings: each message once a minute at most. */
function reportProblemsTo(log: Pick<Log, "info" | "warn">): void {
  let quietUntil = 0;
  const warn = (reason: string) => {
    if (performance.now() < quietUntil) return;
    quietUntil = performance.now() + 60_000;
    log.warn({ reason: reason.slice(0, 500) }, "OpenTelemetry reports a problem");
  };
  const ignore = () => undefined;
  diag.setLogger(
    { error: warn, warn, info: ignore, debug: ignore, verbose: ignore },
    DiagLogLevel.WARN,
  );
}
