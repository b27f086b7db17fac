/** Prometheus metrics of a process; the only one that knows prom-client. */

import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from "prom-client";

/** One process's metrics. Names, help texts and label names are fixed; label values must come from a bounded set. */
export interface Metrics {
  /** A counter; `name` ends in _total. */
  counter(name: string, help: string, labelNames?: readonly string[]): Counter;
  /** A gauge; `collect` sets it whenever the page is asked for. */
  gauge(
    name: string,
    help: string,
    labelNames?: readonly string[],
    collect?: (gauge: Gauge) => void,
  ): Gauge;
  histogram(
    name: string,
    help: string,
    buckets: readonly number[],
    labelNames?: readonly string[],
  ): Histogram;
  /** The page in Prometheus' text format. */
  text(): Promise<string>;
}

/** Makes a registry with the process's own metrics in it: CPU, memory, event loop, garbage collection. */
export function createMetrics(): Metrics {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  return {
    counter: (name, help, labelNames = []) => new Counter({ name, help, labelNames, registers }),
    gauge: (name, help, labelNames = [], collect) => {
      const gauge: Gauge = new Gauge({
        name,
        help,
        labelNames,
        registers,
        collect: () => collect?.(gauge),
      });
      return gauge;
    },
    histogram: (name, help, buckets, labelNames = []) =>
      new Histogram({ name, help, labelNames, buckets: [...buckets], registers }),
    text: () => registry.metrics(),
  };
}
