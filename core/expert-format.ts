/** How expert weights lie in device memory: formats, their layouts and their sizes. */

/**
 * How one expert's matrices are kept. A matrix is [rows, columns], columns a multiple of 8, rows one after the other;
 * everything is read as little-endian u32.
 * - `f32`, `f16`: the values, f16 two per u32, the first in the low half
 * - `int8`: four per u32, the first in the low byte, two's complement; value = q · scale, one f32 scale per row
 * - `int4-gN`: eight per u32, element i at bits 4i; value = (nibble − 8) · scale, one f16 scale per N columns (the last
 *   group may be partial), the scales of a row padded to an even count, two per u32
 * - `mxfp4` (OCP Microscaling 1.0): eight e2m1 per u32 as int4; value = e2m1 · 2^(s − 127), one u8 s per 32 columns,
 *   those of a row padded to a multiple of 4, four per u32
 */
export type ExpertFormat = "f32" | "f16" | "int8" | "int4-g32" | "int4-g64" | "int4-g128" | "mxfp4";

/** Every format, from wide to narrow. */
export const EXPERT_FORMATS: readonly ExpertFormat[] = [
  "f32",
  "f16",
  "int8",
  "int4-g128",
  "int4-g64",
  "int4-g32",
  "mxfp4",
];

/** Columns that share a scale where it is not the whole row. */
export type GroupSize = 32 | 64 | 128;

/** What a format is made of. */
export interface FormatLayout {
  /** Bits of one weight. */
  readonly bits: 4 | 8 | 16 | 32;
  /** Bits of one scale; 0 where there are none. */
  readonly scaleBits: 0 | 8 | 16 | 32;
  /** Columns that share a scale; undefined: the whole row, or no scales. */
  readonly group?: GroupSize;
}

const LAYOUTS: Readonly<Record<ExpertFormat, FormatLayout>> = {
  f32: { bits: 32, scaleBits: 0 },
  f16: { bits: 16, scaleBits: 0 },
  int8: { bits: 8, scaleBits: 32 },
  "int4-g32": { bits: 4, scaleBits: 16, group: 32 },
  "int4-g64": { bits: 4, scaleBits: 16, group: 64 },
  "int4-g128": { bits: 4, scaleBits: 16, group: 128 },
  mxfp4: { bits: 4, scaleBits: 8, group: 32 },
};

/** What a format is made of. */
export function formatLayout(format: ExpertFormat): FormatLayout {
  return LAYOUTS[format];
}

/** u32 that a row's weights take. */
export function rowWords(format: ExpertFormat, columns: number): number {
  return (columns * LAYOUTS[format].bits) / 32;
}

/** u32 that a row's scales take; 0 where the format has none. */
export function rowScaleWords(format: ExpertFormat, columns: number): number {
  const { scaleBits, group } = LAYOUTS[format];
  const scales = group === undefined ? 1 : Math.ceil(columns / group);
  return Math.ceil((scales * scaleBits) / 32);
}

/** Bytes that a matrix takes, scales included. */
export function matrixBytes(format: ExpertFormat, rows: number, columns: number): number {
  return 4 * rows * (rowWords(format, columns) + rowScaleWords(format, columns));
}

/** A matrix as a device holds it. */
export interface PackedMatrix {
  /** u32 [rows, rowWords] */
  readonly weights: Uint32Array<ArrayBuffer>;
  /** u32 [rows, rowScaleWords] */
  readonly scales: Uint32Array<ArrayBuffer>;
}

/** An expert as a device holds it. */
export interface PackedExpert {
  readonly format: ExpertFormat;
  /** [intermediateSize, hiddenSize] */
  readonly gate: PackedMatrix;
  /** [intermediateSize, hiddenSize] */
  readonly up: PackedMatrix;
  /** [hiddenSize, intermediateSize] */
  readonly down: PackedMatrix;
  readonly biases?: ExpertBiases;
}

/** Biases of an expert's projections in f32. */
export interface ExpertBiases {
  /** [intermediateSize] */
  readonly gate: Float32Array<ArrayBuffer>;
  /** [intermediateSize] */
  readonly up: Float32Array<ArrayBuffer>;
  /** [hiddenSize] */
  readonly down: Float32Array<ArrayBuffer>;
}

/** A matrix of zeros to pack into. */
export function emptyMatrix(format: ExpertFormat, rows: number, columns: number): PackedMatrix {
  return {
    weights: new Uint32Array(rows * rowWords(format, columns)),
    scales: new Uint32Array(rows * rowScaleWords(format, columns)),
  };
}

/** The format in which a cluster keeps each expert. */
export type FormatOf = (layer: number, expert: number) => ExpertFormat;

/** Every expert in one format. */
export function allIn(format: ExpertFormat): FormatOf {
  return () => format;
}

/** The formats that occur, the commonest first, of equally common ones the wider. */
export function commonestFirst(formats: readonly ExpertFormat[]): ExpertFormat[] {
  const count = new Map<ExpertFormat, number>();
  for (const format of formats) count.set(format, (count.get(format) ?? 0) + 1);
  return EXPERT_FORMATS.filter((format) => count.has(format)).toSorted(
    (a, b) => (count.get(b) ?? 0) - (count.get(a) ?? 0),
  );
}

/** The formats that occur among these experts of these layers, the commonest first, of equally common ones the wider. */
export function formatsAmong(
  formatOf: FormatOf,
  layers: readonly number[],
  numExperts: number,
): ExpertFormat[] {
  return commonestFirst(
    layers.flatMap((layer) =>
      Array.from({ length: numExperts }, (_, expert) => formatOf(layer, expert)),
    ),
  );
}
