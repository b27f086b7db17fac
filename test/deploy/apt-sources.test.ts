import assert from "node:assert/strict";
import { test } from "node:test";

import { backportsSource } from "../../deploy/apt-sources.ts";

const DEB822 = `# a comment
Types: deb deb-src
# another, in the middle of a stanza
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
`;

function added(files: Record<string, string>, codename = "bookworm") {
  const backports = backportsSource(
    codename,
    Object.entries(files).map(([path, text]) => ({ path, text })),
  );
  return backports.kind === "add" ? backports.file : backports.kind;
}

test("backports come from the URI of the release itself, with its keyring", () => {
  assert.deepEqual(added({ "debian.sources": DEB822 }), {
    path: "/etc/apt/sources.list.d/switchyard-backports.sources",
    text: [
      "Types: deb",
      "URIs: http://mirror.example/debian",
      "Suites: bookworm-backports",
      "Components: main",
      "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg",
      "",
    ].join("\n"),
  });
});

test("a key written into the source goes along, line by line", () => {
  const key =
    "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abcd\n -----END PGP PUBLIC KEY BLOCK-----";
  const file = added({
    "a.sources": `Types: deb\nURIs: http://m/d\nSuites: bookworm\nComponents: main\n${key}\n`,
  });
  assert.ok(typeof file === "object" && file.text.includes(key));
});

test("a one-line source keeps its options and becomes a one-line source", () => {
  assert.deepEqual(
    added({
      "sources.list":
        "# deb http://old.example/debian bookworm main\n" +
        "deb cdrom:[Debian 12] bookworm main\n" +
        "deb-src http://mirror.example/debian bookworm main\n" +
        "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm main contrib # own\n",
    }),
    {
      path: "/etc/apt/sources.list.d/switchyard-backports.list",
      text: "deb [arch=amd64 signed-by=/k.gpg] https://mirror.example/debian bookworm-backports main\n",
    },
  );
});

test("nothing is added where backports are there, in either form", () => {
  const one = "deb http://mirror.example/debian bookworm-backports main\n";
  assert.equal(added({ "debian.sources": DEB822, "b.list": one }), "present");
  const other = "Types: deb\nURIs: http://m/d\nSuites: bookworm-backports\nComponents: main\n";
  assert.equal(added({ "debian.sources": DEB822, "b.sources": other }), "present");
});

test("third-party, disabled and other releases' sources are no origin", () => {
  assert.equal(added({}), "unknown");
  assert.equal(added({ "n.list": "deb https://packages.example/apt cloud-sdk main\n" }), "unknown");
  assert.equal(added({ "d.sources": DEB822 }, "trixie"), "unknown");
  assert.equal(added({ "d.sources": `Enabled: no\n${DEB822}` }), "unknown");
});
