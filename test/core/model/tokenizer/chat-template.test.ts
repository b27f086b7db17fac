import assert from "node:assert/strict";
import { cp, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import {
  ChatTemplateError,
  compileChatTemplate,
  templateSource,
} from "../../../../core/model/tokenizer/chat-template.ts";
import { loadTokenizer } from "../../../../core/model/tokenizer/tokenizer.ts";
import { TOKENIZERS } from "../../../support/real-tokenizers.ts";
import { temporaryDir } from "../checkpoint/safetensors-writer.ts";

const demoDir = join(import.meta.dirname, "../../../../models/demo-moe");
const messages = [
  { role: "system", content: "Be kind." },
  { role: "user", content: "Hi" },
];

test("templates see messages, the opened turn and the named tokens", () => {
  const template = compileChatTemplate(
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}",
    { bos_token: "<s>", eos_token: "</s>" },
  );
  assert.equal(template(messages), "<s>[system]Be kind.</s>[user]Hi</s>[assistant]");
});

test("block tags leave no line breaks, as in Hugging Face's environment", () => {
  const template = compileChatTemplate(
    "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
    {},
  );
  assert.equal(template(messages), "Hi\n");
});

test("a template that tests tools for none sees none", () => {
  const template = compileChatTemplate(
    "{% if tools is not none %}tools{% else %}no{% endif %}",
    {},
  );
  assert.equal(template(messages), "no");
});

test("raise_exception and failures in a template are ChatTemplateErrors with their message", () => {
  const refusing = compileChatTemplate(
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}",
    {},
  );
  assert.throws(
    () => refusing(messages),
    (error) => error instanceof ChatTemplateError && error.message === "System role not supported",
  );
  assert.equal(refusing(messages.slice(1)), "");
  assert.throws(() => compileChatTemplate("{{ missing() }}", {})(messages), ChatTemplateError);
});

test("of several templates the default counts, or the only one", () => {
  const tools = { name: "tool_use", template: "T" };
  assert.equal(templateSource("x"), "x");
  assert.equal(templateSource([tools, { name: "default", template: "D" }]), "D");
  assert.equal(templateSource([tools]), "T");
  assert.equal(templateSource([tools, { name: "rag", template: "R" }]), undefined);
  assert.equal(templateSource(null), undefined);
  for (const wrong of [7, {}, [1], [{ name: "default" }]]) {
    assert.throws(() => templateSource(wrong), TypeError);
  }
});

async function modelWith(t: TestContext, config: unknown, ownFile?: string) {
  const dir = await temporaryDir(t);
  await cp(join(demoDir, "tokenizer.json"), join(dir, "tokenizer.json"));
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify(config));
  if (ownFile !== undefined) await writeFile(join(dir, "chat_template.jinja"), ownFile);
  return (await loadTokenizer(dir))!;
}

test("chat_template.jinja beside the tokenizer wins over tokenizer_config.json", async (t) => {
  const config = { chat_template: "config{{ bos_token }}", bos_token: { content: "<B>" } };
  assert.equal((await modelWith(t, config)).renderChat([]), "config<B>");
  assert.equal((await modelWith(t, config, "file{{ bos_token }}")).renderChat([]), "file<B>");
});

test("without a template rendering is refused", async (t) => {
  const tokenizer = await modelWith(t, {});
  assert.equal(tokenizer.hasChatTemplate, false);
  assert.throws(() => tokenizer.renderChat(messages), ChatTemplateError);
});

test("published templates render what Jinja2 makes of them, and refuse with their own words", async () => {
  const dir = join(TOKENIZERS, "chat-templates");
  const { now, tokens, conversations, expected } = JSON.parse(
    await readFile(join(dir, "expected.json"), "utf8"),
  ) as {
    now: string;
    tokens: Record<string, string>;
    conversations: Record<string, { role: string; content: string }[]>;
    expected: Record<string, Record<string, string | { error: string }>>;
  };
  assert.equal(Object.keys(expected).length, 11);
  for (const [name, outcomes] of Object.entries(expected)) {
    const source = await readFile(join(dir, `${name}.jinja`), "utf8");
    const render = compileChatTemplate(source, tokens, () => new Date(now));
    for (const [conversation, outcome] of Object.entries(outcomes)) {
      const rendered = () => render(conversations[conversation]);
      if (typeof outcome === "string") assert.equal(rendered(), outcome, name);
      else assert.throws(rendered, new ChatTemplateError(outcome.error), name);
    }
  }
});

test("tojson writes as Python's json.dumps does, without escaping HTML or other scripts", () => {
  const spoken = [{ role: "user", content: 'a "b"\n漢 </s>' }];
  const written = String.raw`[{"role": "user", "content": "a \"b\"\n漢 </s>"}]`;
  assert.equal(compileChatTemplate("{{ messages | tojson }}", {})(spoken), written);
  assert.equal(
    compileChatTemplate("{{ {'a': [1, 2.5, true, none], 'b': {}} | tojson(indent=4) }}", {})([]),
    '{\n    "a": [\n        1,\n        2.5,\n        true,\n        null\n    ],\n    "b": {}\n}',
  );
});

test("strftime_now writes the time as C's own locale does, and refuses what it does not know", () => {
  const render = (format: string) => {
    const source = `{{ strftime_now('${format}') }}`;
    return compileChatTemplate(source, {}, () => new Date(2025, 2, 9, 19, 5, 4))([]);
  };
  assert.equal(
    render("%A %a %d %e %B %b %Y %y %H:%M:%S %I %p %%"),
    "Sunday Sun 09  9 March Mar 2025 25 19:05:04 07 PM %",
  );
  assert.equal(render("%FT%T"), "2025-03-09T19:05:04");
  assert.throws(() => render("%Q"), new ChatTemplateError("strftime: %Q is not supported"));
});

test("carriage returns in a template's file are line breaks", () => {
  const source = "{% if true %}\r\n[{{ '\r' }}]{% endif %}\r\n\r\nx";
  assert.equal(compileChatTemplate(source, {})([]), "[\n]\nx");
});
