// Templates of twenty model lines (lines/, written from their documented formats) over forty conversations: the texts are
// transformers' (lines.json, which render.py wrote), and the assistant's parts are what it would generate.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import t from "tap";
import { ChatTemplate } from "../../../lib/data/chat.js";
import { type JsonValue, parseJson } from "../../../lib/data/json.js";
import type { ChatMessage } from "../../../lib/data/rows.js";
import { DataError } from "../../../lib/errors.js";

const golden = JSON.parse(readFileSync(new URL("./lines.json", import.meta.url), "utf8")) as {
  rows: string[];
  texts: Record<string, [plain: string | null, prompted: string | null][]>;
};
type Conversation = Map<string, JsonValue>;
const rows = golden.rows.map((row) => parseJson(row) as Conversation);
const template = (name: string) =>
  new ChatTemplate(readFileSync(new URL(`./lines/${name}.jinja`, import.meta.url), "utf8"), `${name}.jinja`);

function render(of: ChatTemplate, row: Conversation, more: [string, JsonValue][] = []) {
  const extra = (row.get("chat_template_kwargs") ?? new Map()) as Conversation;
  const documents: [string, JsonValue][] = row.get("documents")
    ? [["documents", row.get("documents") as JsonValue]]
    : [];
  return of.render(row.get("messages") as ChatMessage[], {
    tools: (row.get("tools") ?? null) as JsonValue[] | null,
    variables: new Map<string, JsonValue>([
      ["bos_token", "<s>"],
      ["eos_token", "</s>"],
      ...documents,
      ...extra,
      ...more,
    ]),
  });
}

const short = (text: string): string =>
  `${Buffer.byteLength(text)} ${createHash("sha256").update(text).digest("hex").slice(0, 12)}`;

for (const [name, texts] of Object.entries(golden.texts))
  t.test(name, async (t) => {
    const of = template(name);
    for (const [i, [plain]] of texts.entries()) {
      const row = rows[i] as Conversation;
      if (plain === null) {
        t.throws(() => render(of, row), DataError, `conversation ${i} is refused`);
        continue;
      }
      const { text, spans, turns, marked } = render(of, row);
      t.equal(short(text), plain, `conversation ${i}`);
      const messages = row.get("messages") as ChatMessage[];
      if (!marked)
        t.same(
          turns,
          [...messages.keys()].filter((k) => messages[k]?.get("role") === "assistant"),
        );
      for (const [k, [begin, end]] of spans.entries()) {
        const content = messages[turns?.[k] as number]?.get("content");
        const said = typeof content === "string" ? (content.split("</think>").at(-1) as string).trim() : "";
        const span = text.slice(begin, end);
        // A template may show the name of a role, and calls in the place of what is said beside them.
        if (!row.get("tools")) t.ok(span.includes(said), `conversation ${i}, ${JSON.stringify(span)}`);
        t.notOk(
          /<\|im_start\|>(user|system)|\[INST\]|<start_of_turn>user|<\|User\|>|start_header_id\|>(user|system)/.test(
            span.replace(said, ""),
          ),
        );
      }
    }
  });

t.test("spans of templates that drop thoughts, or put a turn before the first", async (t) => {
  const spansOf = (name: string, i: number) => {
    const { text, spans } = render(template(name), rows[i] as Conversation);
    return spans.map(([begin, end]) => text.slice(begin, end));
  };
  t.same(spansOf("qwen3", 23), ["42<|im_end|>\n", "<think>\nSecond\n</think>\n\n43<|im_end|>\n"]);
  t.same(spansOf("qwen3", 25), ["42<|im_end|>\n", "<think>\nb\n</think>\n\n43<|im_end|>\n"]);
  t.match(spansOf("qwen3", 36)[0], /^<tool_call>.*"10": 1\.0, "2": 12345678901234567890, "x": null, "f": 1e-07/s);
  t.same(spansOf("deepseek_r1", 25), ["\n\n42<|end_of_sentence|>", "\n\n43<|end_of_sentence|>"]);
  t.same(spansOf("deepseek_r1", 3), ["Hello!<|end_of_sentence|>", "Then nothing.<|end_of_sentence|>"]);
  t.same(spansOf("llama3_1", 6), ["Hello!<|eot_id|>", "Then nothing.<|eot_id|>"]);
  t.same(spansOf("llama3", 6), ["Hello!<|eot_id|>", "Then nothing.<|eot_id|>"]);
  t.same(spansOf("qwen2", 6), ["Hello!<|im_end|>\n", "Then nothing.<|im_end|>\n"]);
  t.match(
    spansOf("gpt_oss", 22)[0],
    /<\|channel\|>analysis<\|message\|>Let me see\.\n6 x 7<\|end\|>.*final<\|message\|>42<\|return\|>$/s,
  );
  t.same(spansOf("gpt_oss", 3), [
    "<|channel|>final<|message|>Hello!<|end|>",
    "<|channel|>final<|message|>Then nothing.<|return|>",
  ]);
});
