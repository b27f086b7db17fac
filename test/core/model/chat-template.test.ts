import assert from "node:assert/strict";
import { cp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { test, type TestContext } from "node:test";

import {
  ChatTemplateError,
  compileChatTemplate,
  templateSource,
} from "../../../core/model/chat-template.ts";
import { loadTokenizer } from "../../../core/model/tokenizer.ts";
import { temporaryDir } from "./safetensors-writer.ts";

const demoDir = join(import.meta.dirname, "../../../models/demo-moe");
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
