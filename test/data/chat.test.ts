// Chat templates and the encoding of rows: texts, ids and masks against transformers', and the masks' own rules.

import fs from "node:fs";
import path from "node:path";
import t from "tap";
import { ChatTemplate } from "../../lib/data/chat.js";
import { packLabels, RowEncoder, unpackLabels } from "../../lib/data/encode.js";
import { type JsonValue, parseJson } from "../../lib/data/json.js";
import type { ChatMessage, Row } from "../../lib/data/rows.js";
import { loadTokenizer } from "../../lib/data/tokenizer.js";
import { DataError, FormatError } from "../../lib/errors.js";
import { GOLDEN, openingError, rejection } from "./helpers.js";

type Message = { role: string; content: string };

interface Chat {
  messages: Message[];
  text: string;
  ids: number[];
  mask?: number[];
}
const golden = JSON.parse(fs.readFileSync(path.join(GOLDEN, "golden.json"), "utf8")) as {
  chats: Record<string, Chat[]>;
  tools: { tools: object[]; messages: Message[]; text: string };
};
const spec = (name: string) => ({ kind: "json", file: path.join(GOLDEN, name, "tokenizer.json") }) as const;
const encoder = (name: string, chatTemplate: string | null = null) =>
  new RowEncoder({
    tokenizer: name === "bytes" ? { kind: "bytes" } : spec(name),
    vocabSize: null,
    chatTemplate,
    trainOn: "assistant",
    noTokenizerHint: "none is given",
  });
/** A plain value as a row's parser gives it. */
const json = <T extends JsonValue>(value: unknown) => parseJson(JSON.stringify(value)) as T;
const row = (messages: Message[], untrained: number[] = []): Row => ({
  kind: "messages",
  messages: json<ChatMessage[]>(messages),
  tools: null,
  variables: new Map(),
  untrained,
  shown: 0,
});
const defaultOf = ({ chatTemplates }: ReturnType<typeof loadTokenizer>) => chatTemplates.get("default")?.source ?? "";
const plain = { tools: null, variables: new Map<string, JsonValue>() };
/** What the template gives for plain messages. */
function render(template: ChatTemplate, messages: object[], chat: Parameters<ChatTemplate["render"]>[1] = plain) {
  return template.render(json<ChatMessage[]>(messages), chat);
}

/** What the assistant is trained on, as text. */
function targets(name: string, messages: Message[], template: string | null = null): string {
  const tokenizer = name === "bytes" ? loadTokenizer({ kind: "bytes" }) : loadTokenizer(spec(name));
  const { inputIds, labels } = encoder(name, template).encode(row(messages));
  return Array.from(inputIds, (id, i) => (labels?.[i] === -100 ? "" : tokenizer.piece(id))).join("");
}

t.test("rendered texts, ids and generation masks equal transformers'", async (t) => {
  for (const [name, chats] of Object.entries(golden.chats)) {
    const tokenizer = loadTokenizer(spec(name));
    for (const { messages, text, ids, mask } of chats) {
      const template = new ChatTemplate(defaultOf(tokenizer));
      const variables = new Map<string, JsonValue>(Object.entries(tokenizer.specialTokens));
      const rendered = render(template, messages, { tools: null, variables });
      t.equal(rendered.text, text, name);
      t.equal(rendered.marked, mask !== undefined, name);
      const { inputIds, labels } = encoder(name).encode(row(messages));
      t.same(Array.from(inputIds), ids, name);
      if (mask !== undefined)
        t.same(
          Array.from(labels ?? [], (label) => Number(label !== -100)),
          mask,
          name,
        );
      for (let i = 0; i < ids.length; i++) {
        if (labels?.[i] !== -100 && labels?.[i] !== ids[i]) t.fail("a label is its id or -100");
      }
    }
  }
});

t.test("the assistant's part ends with its end-of-turn token", async (t) => {
  const messages = [
    { role: "system", content: "Be brief." },
    { role: "user", content: "One" },
    { role: "assistant", content: "Two" },
    { role: "user", content: "Three" },
    { role: "assistant", content: "Four" },
  ];
  t.equal(targets("llama3", messages), "Two<|eot_id|>Four<|eot_id|>");
  t.equal(targets("qwen2", messages), "Two<|im_end|>Four<|im_end|>", "the template's line end is not the assistant's");
  t.equal(targets("qwen2_marked", messages), "Two<|im_end|>Four<|im_end|>");
  const around =
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}";
  t.equal(targets("qwen2", messages, around), "Two<|im_end|>Four<|im_end|>", "marks around the content alone");
  t.equal(targets("qwen2_marked", messages.slice(0, 2)), "", "no assistant, no target");
  const simple =
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
  t.equal(
    targets("bytes", messages, simple),
    "Two<0x0A>Four<0x0A>",
    "without special tokens the rendering counts as it is",
  );
});

t.test("generation marks keep the template's white space", async (t) => {
  const marked = (open: string, close: string) =>
    `{% for m in messages %}\n  {% if m.role == 'assistant' %}\n[\n  ${open}\n  {{ m.content }}\n  ${close}\n]\n  {% endif %}\n{% endfor %}`;
  // As jinja2 renders it with trim_blocks and lstrip_blocks, for the four ways to write the tags.
  const expected: Record<string, string> = {
    "{% generation %}{% endgeneration %}": "[\n  X\n]\n",
    "{%- generation -%}{%- endgeneration -%}": "[X]\n",
    "{%- generation %}{% endgeneration -%}": "[  X\n]\n",
    "{% generation -%}{%- endgeneration %}": "[\nX]\n",
  };
  for (const [tags, text] of Object.entries(expected)) {
    const [open, close] = tags.split(/(?<=%})/) as [string, string];
    const rendered = render(new ChatTemplate(marked(open, close)), [{ role: "assistant", content: "X" }]);
    t.equal(rendered.text, text, tags);
    t.equal(rendered.spans.length, 1);
    const [begin, end] = rendered.spans[0] as [number, number];
    t.equal(rendered.text.slice(begin, end).trim(), "X", tags);
  }
  // A message that holds the sentinels' characters shifts nothing.
  const sly = { role: "assistant", content: "a\uE0000\uE001b\uE0020\uE001c" };
  const rendered = render(
    new ChatTemplate("{% for m in messages %}<{% generation %}{{ m.content }}{% endgeneration %}>{% endfor %}"),
    [sly],
  );
  t.equal(rendered.text, `<${sly.content}>`);
  t.same(rendered.spans, [[1, 1 + sly.content.length]]);
});

t.test("tools, documents and row variables reach the template", async (t) => {
  const { tools, messages, text } = golden.tools;
  const tokenizer = loadTokenizer(spec("qwen2"));
  const template = new ChatTemplate(defaultOf(tokenizer));
  const specials = json<Map<string, JsonValue>>(tokenizer.specialTokens);
  t.equal(render(template, messages, { tools: json<JsonValue[]>(tools), variables: specials }).text, text);
  const shown = new ChatTemplate(
    "{{ documents[0].title }} {{ thinking }} {{ strftime_now('%d %b %Y') }} {{ bos_token }}{{ messages[0].content }}",
  );
  const variables = json<Map<string, JsonValue>>({ documents: [{ title: "T" }], thinking: "off", bos_token: "<s>" });
  t.equal(
    render(shown, [{ role: "user", content: "hi" }], { tools: null, variables }).text,
    "T off 26 Jul 2024 <s>hi",
    "the date is fixed",
  );
});

t.test("templates that cannot be used", async (t) => {
  const messages = [
    { role: "user", content: "a" },
    { role: "assistant", content: "b" },
    { role: "user", content: "c" },
    { role: "assistant", content: "d" },
  ];
  // Marks the last assistant turn alone, as templates do that drop earlier reasoning.
  const unstable =
    "{% for m in messages %}{{ m.role }}{% if m.role == 'assistant' and loop.last %} (last){% endif %}: {{ m.content }}\n{% endfor %}";
  t.equal(render(new ChatTemplate(unstable), messages).spans.length, 2);
  // Looks the messages up by their numbers: what was printed for which is not known.
  const byNumber = unstable.replace(
    "for m in messages %}",
    "for i in range(messages | length) %}{% set m = messages[i] %}",
  );
  t.throws(() => render(new ChatTemplate(byNumber, "a.jinja"), messages), {
    constructor: DataError,
    message:
      /^a\.jinja: which part of the text messages\[1\] is cannot be found: .* and no loop over the messages prints it; mark the part in the template with {% generation %}/,
  });
  t.throws(
    () => render(new ChatTemplate("{{ raise_exception('only tools') }}"), messages),
    /^the chat template:1: the chat template failed: only tools$/,
  );
  t.throws(() => new ChatTemplate("\n{% if %}", "a.jinja"), {
    constructor: FormatError,
    message: /^a\.jinja:2: the chat template cannot be parsed: /,
  });
  t.throws(() => new ChatTemplate("{% generation %}a"), /the template ends before 'endgeneration'/);
  t.throws(
    () => render(new ChatTemplate("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x }}"), messages),
    /stands within a macro, a call or a captured block/,
  );

  const chat = [{ messages }];
  const none = await openingError(t.testdir(), chat);
  t.match(none.message, /rows\.jsonl:1: a messages row needs a chat template, and the tokenizer has none/);
  const bad = await openingError(t.testdir(), chat, { chatTemplate: byNumber });
  t.match(bad.message, /rows\.jsonl:1: data\.chat_template: which part of the text messages\[1\] is cannot be found/);
  const endless = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}";
  const stopped = await openingError(t.testdir(), chat, { chatTemplate: endless });
  t.match(
    stopped.message,
    /rows\.jsonl:1: data\.chat_template:1: the chat template failed: it takes more than \d+ steps/,
  );
  const empty = await openingError(t.testdir(), chat, { chatTemplate: "{% if false %}x{% endif %}" });
  t.match(empty.message, /rows\.jsonl:1: the chat template renders these messages as nothing/);
});

t.test("spans where a beginning's rendering is no beginning of the whole", async (t) => {
  // As reasoning models' templates are: thoughts of turns before the last user message are dropped.
  const reasoning =
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}" +
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.index0 > ns.last %}" +
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}" +
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
  const spansOf = (template: string, messages: object[], chat = plain) => {
    const { text, spans } = render(new ChatTemplate(template), messages, chat);
    return spans.map(([begin, end]) => text.slice(begin, end));
  };
  const user = { role: "user", content: "Hi" };
  const [first, second] = ["a", "b"].map((reason) => ({
    role: "assistant",
    content: reason + reason,
    reasoning_content: reason,
  }));
  t.same(spansOf(reasoning, [user, first as object, user, second as object]), [
    "aa<|im_end|>\n",
    "<think>\nb\n</think>\n\nbb<|im_end|>\n",
  ]);
  t.same(spansOf(reasoning, [user, first as object, second as object]), [
    "<think>\na\n</think>\n\naa<|im_end|>\n",
    "<think>\nb\n</think>\n\nbb<|im_end|>\n",
  ]);
  // Looks at the first message before the loop, so no beginning of none can be rendered; the first round prints BOS.
  const looks =
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% endif %}" +
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}" +
    "{% if add_generation_prompt %}[assistant]{% endif %}{% if messages[0].role.x %}{% endif %}";
  const variables = new Map<string, JsonValue>([["bos_token", "<s>"]]);
  t.same(spansOf(looks, [first as object, user, second as object], { tools: null, variables }), ["aa</s>", "bb</s>"]);
  // The content shows before the loop: the loop's round is not all of it.
  const twice = `{{ messages[-1].content }}|${reasoning}`;
  t.throws(
    () => render(new ChatTemplate(twice), [user, first as object, user, second as object]),
    /its content shows outside of what the loop prints for it/,
  );
  const within = `{% macro all() %}${reasoning}{% endmacro %}{{ all() }}`;
  t.throws(
    () => render(new ChatTemplate(within), [user, first as object, user, second as object]),
    /the template loops over messages within a macro/,
  );
});

t.test("the template is chosen as transformers chooses it", async (t) => {
  const folder = t.testdir();
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    fs.copyFileSync(path.join(GOLDEN, "qwen2", name), path.join(folder, name));
  const file = path.join(folder, "tokenizer_config.json");
  const config = JSON.parse(fs.readFileSync(file, "utf8"));
  const text = (tools: object[] | null) => {
    const encode = new RowEncoder({
      tokenizer: { kind: "json", file: path.join(folder, "tokenizer.json") },
      vocabSize: null,
      chatTemplate: null,
      trainOn: "assistant",
      noTokenizerHint: "",
    });
    const given = { ...row([{ role: "user", content: "x" }]), tools: json<JsonValue[] | null>(tools) } as Row;
    const tokenizer = loadTokenizer({ kind: "json", file: path.join(folder, "tokenizer.json") });
    return Array.from(encode.encode(given).inputIds, (id) => tokenizer.piece(id)).join("");
  };
  const write = (template: unknown) => fs.writeFileSync(file, JSON.stringify({ ...config, chat_template: template }));
  const list = ["default", "tool_use", "rag"].map((name) => ({ name, template: `${name[0]}` }));
  write(list);
  t.equal(text(null), "d");
  t.equal(text([{ type: "function" }]), "t");
  t.equal(text([]), "t", "an empty list of tools is one");
  write(list.slice(0, 1));
  t.equal(text([{ type: "function" }]), "d");
  write(list.slice(1));
  t.equal(text([]), "t");
  t.throws(() => text(null), /several chat templates \(tool_use, rag\), but none is named default/);
  fs.mkdirSync(path.join(folder, "additional_chat_templates"));
  fs.writeFileSync(path.join(folder, "additional_chat_templates", "tool_use.jinja"), "T");
  fs.writeFileSync(path.join(folder, "chat_template.jinja"), "D");
  t.equal(text(null), "D", "files come before the configuration");
  t.equal(text([]), "T");
  fs.writeFileSync(path.join(folder, "additional_chat_templates", "tool_use.jinja"), "a\n{{ x.y }}");
  t.throws(() => text([]), /tool_use\.jinja:2: the chat template failed: 'x' is undefined/);
});

t.test("text rows: the tokenizer's own special tokens once, and EOS", async (t) => {
  const ids = (name: string, text: string) => Array.from(encoder(name).encode({ kind: "text", text }).inputIds);
  t.same(ids("bytes", "hé"), [256, 104, 0xc3, 0xa9, 257]);
  t.same(ids("llama3", "hi"), [420, ...loadTokenizer(spec("llama3")).encode("hi"), 421]);
  t.same(
    ids("llama3", "<|begin_of_text|>hi<|end_of_text|>"),
    ids("llama3", "hi"),
    "not repeated where the text has them",
  );
  const unigram = ids("unigram", "hi");
  t.equal(unigram.filter((id) => id === 1).length, 1, "the post-processor's EOS is the EOS");
  t.equal(unigram.at(-1), 1);
  t.equal(encoder("bytes").encode({ kind: "text", text: "a" }).labels, null);
});

t.test("prompt and completion", async (t) => {
  const encode = (name: string, prompt: string, completion: string) => {
    const { inputIds, labels } = encoder(name).encode({ kind: "prompt", prompt, completion });
    return { ids: Array.from(inputIds), labels: Array.from(labels ?? []) };
  };
  t.same(encode("bytes", "ab", "cd"), { ids: [256, 97, 98, 99, 100, 257], labels: [-100, -100, -100, 99, 100, 257] });
  t.same(encode("bytes", "", "cd").labels, [-100, 99, 100, 257]);
  const llama3 = loadTokenizer(spec("llama3"));
  const joint = encode("llama3", "Question: 12\nAnswer:", " yes");
  t.same(
    joint.ids,
    [420, ...llama3.encode("Question: 12\nAnswer: yes"), 421],
    "one encoding where the boundary is clean",
  );
  const prompt = llama3.encode("Question: 12\nAnswer:").length;
  t.same(joint.labels, [...Array(prompt + 1).fill(-100), ...joint.ids.slice(prompt + 1)]);
  // "T" and "he" join to one token across the boundary: then each side is encoded by itself.
  const [left, right] = ["T", "he yes"];
  t.notSame(
    Array.from(llama3.encode(left + right)).slice(0, llama3.encode(left).length),
    Array.from(llama3.encode(left)),
  );
  const split = encode("llama3", left, right);
  t.same(split.ids, [420, ...llama3.encode(left), ...llama3.encode(right), 421]);
  t.same(split.labels, [-100, ...Array(llama3.encode(left).length).fill(-100), ...llama3.encode(right), 421]);
});

t.test("input_ids rows are used as they are, and need no tokenizer", async (t) => {
  const none = new RowEncoder({
    tokenizer: null,
    vocabSize: null,
    chatTemplate: null,
    trainOn: "assistant",
    noTokenizerHint: "there is none",
  });
  const inputIds = Int32Array.of(5, 6);
  t.same(none.encode({ kind: "tokens", inputIds, labels: null, parts: null }), { inputIds, labels: null, parts: null });
  for (const [kind, text] of [
    ["text", { kind: "text", text: "a" }],
    ["messages", row([{ role: "user", content: "a" }])],
    ["prompt", { kind: "prompt", prompt: "a", completion: "b" }],
  ] as [string, Row][]) {
    t.throws(() => none.encode(text), {
      constructor: DataError,
      message: `a ${kind} row needs a tokenizer, but there is none`,
    });
  }
  const error = await openingError(t.testdir(), [{ text: "a" }], { tokenizer: undefined });
  t.match(error.message, /rows\.jsonl:1: a text row needs a tokenizer, but none is given; set data\.tokenizer/);
  const folder = t.testdir();
  const absent = await openingError(folder, [{ input_ids: [1] }, { text: "a" }], { tokenizer: folder });
  t.match(
    absent.message,
    /rows\.jsonl:2: a text row needs a tokenizer, but .* holds no tokenizer\.json; set data\.tokenizer/,
  );
  const foreign = await openingError(t.testdir(), [{ text: "hello" }], {
    tokenizer: path.join(GOLDEN, "llama3"),
    vocabSize: 400,
  });
  t.match(
    foreign.message,
    /rows\.jsonl:1: the tokenizer gives token id 420, but the model's vocabulary has 400 tokens/,
  );
  const unknown = await rejection(
    Promise.resolve().then(() => loadTokenizer({ kind: "json", file: "/nowhere/tokenizer.json" })),
  );
  t.match(unknown.message, /there is no tokenizer file/);
});

t.test("labels are packed without loss", async (t) => {
  const ids = Int32Array.of(7, 8, 9, 10, 11, 12);
  const cases: [labels: number[] | null, words: number][] = [
    [null, 0],
    [[7, 8, 9, 10, 11, 12], 0],
    [[-100, -100, -100, 10, 11, 12], 2],
    [[-100, -100, -100, -100, -100, -100], 1],
    [[7, 8, -100, -100, 11, 12], 4],
    [[7, 8, 9, 10, 11, 13], 6],
    [[-100, 8, -100, 10, -100, 12], 6],
  ];
  for (const [labels, words] of cases) {
    const given = labels === null ? null : Int32Array.from(labels);
    const packed = packLabels(ids, given);
    t.equal(packed?.words.length ?? 0, words, JSON.stringify(labels));
    for (const [begin, end] of [
      [0, 6],
      [1, 4],
      [3, 6],
      [5, 6],
    ] as const) {
      const part = ids.slice(begin, end);
      const back = packed === null ? part : unpackLabels(packed.words, packed.raw, part, begin);
      t.same(back, (given ?? ids).slice(begin, end), `${JSON.stringify(labels)} ${begin}..${end}`);
    }
  }
});
