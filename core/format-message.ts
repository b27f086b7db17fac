/** Formats of experts to and from the wire's enum. */

import { ExpertFormat as WireFormat } from "../proto/gen/switchyard/v1/cluster.ts";
import type { ExpertFormat } from "./expert-format.ts";

const WIRE_FORMATS: Readonly<Record<ExpertFormat, WireFormat>> = {
  f32: WireFormat.EXPERT_FORMAT_F32,
  f16: WireFormat.EXPERT_FORMAT_F16,
  int8: WireFormat.EXPERT_FORMAT_INT8,
  "int4-g32": WireFormat.EXPERT_FORMAT_INT4_G32,
  "int4-g64": WireFormat.EXPERT_FORMAT_INT4_G64,
  "int4-g128": WireFormat.EXPERT_FORMAT_INT4_G128,
  mxfp4: WireFormat.EXPERT_FORMAT_MXFP4,
};

const FORMATS = new Map(
  Object.entries(WIRE_FORMATS).map(([format, wire]) => [wire, format as ExpertFormat]),
);

/** A format as messages name it. */
export function formatToWire(format: ExpertFormat): WireFormat {
  return WIRE_FORMATS[format];
}

/** The format that a message names; undefined for unspecified and unknown ones. */
export function formatFromWire(format: WireFormat): ExpertFormat | undefined {
  return FORMATS.get(format);
}
