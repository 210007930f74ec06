// What of a conversation is trained on: by role, all of it, by columns of a prompt and a completion; and other templates.

import path from "node:path";
import t, { type Test } from "tap";
import type { DataOptions } from "../../lib/data/index.js";
import { namedTemplate } from "../../lib/data/tokenizer.js";
import { ConfigError, DataError } from "../../lib/errors.js";
import { fresh, GOLDEN, open, rejection, write } from "./helpers.js";

const turn = (role: string, content: string, more: object = {}) => ({ role, content, ...more });
const talk = [
  turn("system", "Rules"),
  turn("user", "One"),
  turn("assistant", "Two"),
  turn("user", "Three", { weight: 0 }),
  turn("assistant", "Four"),
];

/** What each row is trained on, as text; parts that are not next to each other are parted by |. */
async function targets(t: Test, rows: object[], tokenizer: string, options: Partial<DataOptions> = {}) {
  const directory = fresh(t);
  write(directory, "rows.jsonl", rows);
  const where = tokenizer === "bytes" ? "bytes" : path.join(GOLDEN, tokenizer);
  const data = await open(directory, { tokenizer: where, sequenceLength: 512, ...options });
  const texts: string[] = [];
  for (let i = 0; i < rows.length; i++) {
    const tokens = (await data.describeSample(i)).documents.flatMap(({ tokens }) => tokens);
    texts.push(
      tokens
        .map(({ target, piece }) => (target ? piece : "\0"))
        .join("")
        .replace(/^\0+|\0+$/g, "")
        .replace(/\0+/g, "|"),
    );
  }
  await data.close();
  return texts;
}

t.test("roles: contents and their end-of-turn tokens; a message that says no stays out", async (t) => {
  for (const [tokenizer, end] of [
    ["llama3", "<|eot_id|>"],
    ["qwen2", "<|im_end|>"],
    ["qwen2_marked", "<|im_end|>"],
  ] as const) {
    const on = async (trainOn: DataOptions["trainOn"]) =>
      (await targets(t, [{ messages: talk }], tokenizer, { trainOn }))[0];
    t.equal(await on("assistant"), `Two${end}|Four${end}`, tokenizer);
    t.equal(await on(["assistant"]), `Two${end}|Four${end}`);
    t.equal(await on(["user", "assistant"]), `One${end}|Two${end}|Four${end}`);
    t.equal(await on(["system", "user"]), `Rules${end}|One${end}`);
    t.equal(await on(["tool"]), "");
  }
});

t.test("all: the whole conversation, but for messages that say no, and prompts", async (t) => {
  const rows = [{ messages: talk.filter(({ role }) => role !== "system") }, { prompt: "p", completion: "c" }];
  const options = { trainOn: "all" as const };
  const [chat, prompt] = await targets(t, rows, "qwen2", options);
  // The first token of a row is nobody's target.
  t.equal(
    chat,
    "user\nOne<|im_end|>\n<|im_start|>assistant\nTwo<|im_end|>\n<|im_start|>user\n|\n<|im_start|>assistant\nFour<|im_end|>\n",
  );
  t.match(prompt, /^c/, "what is left of two tokens");
  t.same(await targets(t, [{ prompt: "ab", completion: "cd" }], "bytes", options), ["abcd<|eos|>"]);
});

t.test("what was kept of one choice is not taken for another", async (t) => {
  const directory = fresh(t);
  write(directory, "rows.jsonl", [{ messages: talk }]);
  const prints = [];
  for (const trainOn of ["assistant", ["assistant"], "all", ["user"]] as const) {
    const data = await open(directory, { tokenizer: path.join(GOLDEN, "llama3"), sequenceLength: 512, trainOn });
    prints.push(data.fingerprint);
    await data.close();
  }
  t.equal(new Set(prints).size, 4);
});

t.test("a role whose content the template does not print as it is", async (t) => {
  const directory = fresh(t);
  const file = write(directory, "rows.jsonl", [{ messages: talk }]);
  const chatTemplate =
    "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
  const error = await rejection(
    open(directory, { files: [file], tokenizer: "bytes", chatTemplate, trainOn: ["user"] }),
  );
  t.ok(error instanceof DataError);
  t.match(error.message, /rows\.jsonl:1: .*which part of the text messages\[1\] \(user\) is cannot be found/);
});

t.test("prompt and completion as lists of messages are one conversation, of which the completion counts", async (t) => {
  const [user, first, again, last] = talk.slice(1) as [object, object, object, object];
  const tools = [{ type: "function", function: { name: "f", description: "d", parameters: {} } }];
  const rows = [
    { prompt: [user], completion: [first] },
    { prompt: [user, first, again], completion: [last] },
    { prompt: [user], completion: [first, again, last], tools },
  ];
  for (const [tokenizer, end] of [
    ["llama3", "<|eot_id|>"],
    ["qwen2_marked", "<|im_end|>"],
  ] as const)
    t.same(await targets(t, rows, tokenizer), [`Two${end}`, `Four${end}`, `Two${end}|Four${end}`], tokenizer);
  const directory = fresh(t);
  const mixed = write(directory, "rows.jsonl", [{ prompt: [user], completion: "text" }]);
  t.match(
    (await rejection(open(directory, { files: [mixed], tokenizer: "bytes" }))).message,
    /"prompt" must be a string, not a list/,
  );
  const empty = write(directory, "rows.jsonl", [{ prompt: [user], completion: [] }]);
  t.match(
    (await rejection(open(directory, { files: [empty], tokenizer: "bytes" }))).message,
    /rows\.jsonl:1: "completion" is empty/,
  );
});

t.test("tools as the JSON text of a list are that list; content in parts reaches the template", async (t) => {
  const chatTemplate =
    "{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}" +
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
  const ids = async (row: object) => {
    const directory = fresh(t);
    const data = await open(directory, {
      files: [write(directory, "rows.jsonl", [row])],
      ...{ tokenizer: "bytes", chatTemplate, sequenceLength: 512 },
    });
    const { inputIds, targets } = await data.sequence(0, 0);
    await data.close();
    return [[...inputIds], [...targets]];
  };
  const tools = [{ b: 1.0, a: [2] }];
  const messages = [turn("user", "hi"), turn("assistant", "yes")];
  const plain = await ids({ messages, tools });
  t.same(await ids({ messages, tools: JSON.stringify(tools) }), plain);
  const parts = messages.map(({ role, content }) => ({ role, content: [{ type: "text", text: content }] }));
  t.same(await ids({ messages: parts, tools }), plain);
  t.same(await ids({ messages, tools: "" }), await ids({ messages }));
  t.same(await ids({ messages, tools: "null" }), await ids({ messages }));
  for (const [bad, message] of [
    ["[", /"tools" is a text that is no JSON: the text ends/],
    ["{}", /"tools" must be a list, or the JSON text of one, not an object/],
  ] as const)
    t.match((await rejection(ids({ messages, tools: bad }))).message, message);
});

t.test("a template by its file or its name", async (t) => {
  const directory = fresh(t);
  const file = write(directory, "own.jinja", "{{ messages }}");
  const spec = { kind: "json" as const, file: path.join(GOLDEN, "llama3", "tokenizer.json") };
  t.equal(namedTemplate(file, null).source, "{{ messages }}");
  t.match(namedTemplate("default", spec).source, /start_header_id/);
  for (const [name, of, message] of [
    [
      "rag",
      spec,
      /data\.chat_template: there is no file "rag", nor a template of this name \(the tokenizer has default\)/,
    ],
    ["x.jinja", null, /there is no file "x\.jinja", nor a template of this name \(the tokenizer has no templates\)/],
  ] as const) {
    t.throws(() => namedTemplate(name, of), { constructor: ConfigError, message });
  }
});
