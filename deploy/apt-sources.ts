/** Where a Debian machine's backports are, deduced from where its own packages come from. */

/** A file of apt's configuration. */
export interface SourceFile {
  readonly path: string;
  readonly text: string;
}

/** What apt has to be told, if anything. */
export type Backports =
  | { readonly kind: "present" }
  | { readonly kind: "add"; readonly file: SourceFile }
  /** No source of the distribution itself was found. */
  | { readonly kind: "unknown" };

/** One `deb` source: URIs and suites, and how to write it down again with another suite. */
interface Source {
  readonly suites: readonly string[];
  readonly components: readonly string[];
  readonly extension: "sources" | "list";
  withSuite(suite: string): string;
}

/** The source that brings `<codename>-backports` from where the machine's `codename` comes from; pure. */
export function backportsSource(codename: string, files: readonly SourceFile[]): Backports {
  const suite = `${codename}-backports`;
  const sources = files.flatMap((file) =>
    file.path.endsWith(".sources") ? readDeb822(file.text) : readOneLine(file.text),
  );
  const main = sources.filter((source) => source.components.includes("main"));
  if (main.some((source) => source.suites.includes(suite))) return { kind: "present" };
  const own = main.find((source) => source.suites.includes(codename));
  if (own === undefined) return { kind: "unknown" };
  return {
    kind: "add",
    file: {
      path: `/etc/apt/sources.list.d/switchyard-backports.${own.extension}`,
      text: own.withSuite(suite),
    },
  };
}

/** Fields that go along unchanged: who may sign, for which machines. */
const KEPT_FIELDS = ["signed-by", "architectures", "trusted", "check-valid-until"];

function readDeb822(text: string): Source[] {
  const withoutComments = text.replaceAll(/^#.*\n?/gm, "");
  return withoutComments.split(/\n(?:[ \t]*\n)+/).flatMap((stanza) => {
    const fields = readFields(stanza);
    const words = (name: string): string[] => fields.get(name)?.split(/\s+/).filter(Boolean) ?? [];
    const isOff = ["no", "false", "0", "off"].includes(fields.get("enabled")?.trim() ?? "");
    if (!words("types").includes("deb") || isOff) return [];
    const kept = KEPT_FIELDS.flatMap((name) => {
      const value = fields.get(name);
      return value === undefined ? [] : [`${capitalize(name)}:${value}`];
    });
    return [
      {
        suites: words("suites"),
        components: words("components"),
        extension: "sources" as const,
        withSuite: (suite: string) =>
          [
            "Types: deb",
            `URIs: ${words("uris").join(" ")}`,
            `Suites: ${suite}`,
            "Components: main",
            ...kept,
            "",
          ].join("\n"),
      },
    ];
  });
}

/** Fields by lower-case name, the values as they stand, continuation lines included. */
function readFields(stanza: string): Map<string, string> {
  const fields = new Map<string, string>();
  let current = "";
  for (const line of stanza.split("\n")) {
    const field = /^([A-Za-z-]+):(.*)$/.exec(line);
    if (field !== null) {
      current = field[1].toLowerCase();
      fields.set(current, field[2]);
    } else if (/^[ \t]/.test(line) && current !== "") {
      fields.set(current, `${fields.get(current) ?? ""}\n${line}`);
    }
  }
  return fields;
}

function readOneLine(text: string): Source[] {
  return text.split("\n").flatMap((line) => {
    const match = /^\s*deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+([^#]*)/.exec(line);
    if (match === null || match[2].startsWith("cdrom:")) return [];
    const [, options = "", uri, suite, components] = match;
    return [
      {
        suites: [suite],
        components: components.trim().split(/\s+/),
        extension: "list" as const,
        withSuite: (other: string) => `deb ${options}${uri} ${other} main\n`,
      },
    ];
  });
}

function capitalize(name: string): string {
  return name.replaceAll(/(^|-)[a-z]/g, (letter) => letter.toUpperCase());
}
