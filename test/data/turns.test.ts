// Turns that a conversation keeps out of the loss: by weight or train, whichever way the template tells turns apart.

import path from "node:path";
import t from "tap";
import { GOLDEN, open, openingError, write } from "./helpers.js";

const conversation = (...turns: object[]) => ({
  messages: [
    { role: "user", content: "One" },
    { role: "assistant", content: "Two", ...turns[0] },
    { role: "user", content: "Three" },
    { role: "assistant", content: "Four", ...turns[1] },
  ],
});

/** What each row is trained on, as text. */
async function targets(directory: string, rows: object[], tokenizer: string, chatTemplate?: string): Promise<string[]> {
  write(directory, "rows.jsonl", rows);
  const data = await open(directory, { tokenizer: path.join(GOLDEN, tokenizer), sequenceLength: 512, chatTemplate });
  const texts: string[] = [];
  for (let i = 0; i < rows.length; i++) {
    const { documents } = await data.describeSample(i);
    const tokens = documents.flatMap(({ tokens }) => tokens);
    texts.push(tokens.map(({ target, piece }) => (target ? piece : "")).join(""));
  }
  await data.close();
  return texts;
}

const rows = [
  conversation(),
  conversation({ weight: 1 }, { train: true }),
  conversation({ weight: 0 }),
  conversation({}, { train: false }),
  conversation({ train: 0 }, { weight: 0.0 }),
];
const expected = (end: string) => [`Two${end}Four${end}`, `Two${end}Four${end}`, `Four${end}`, `Two${end}`, ""];

t.test("in templates with and without marks", async (t) => {
  t.same(await targets(t.testdir(), rows, "llama3"), expected("<|eot_id|>"));
  t.same(await targets(t.testdir(), rows, "qwen2"), expected("<|im_end|>"));
  t.same(await targets(t.testdir(), rows, "qwen2_marked"), expected("<|im_end|>"));
});

t.test("the template sees the keys", async (t) => {
  const template =
    "{% for m in messages %}{{ m.role }} {{ m.weight }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant 0: {% endif %}";
  t.same(await targets(t.testdir(), [conversation({ weight: 0 }, { weight: 0 })], "llama3", template), [""]);
});

t.test("marks that do not tell whose they are", async (t) => {
  const one =
    "{% for m in messages %}{{ m.content }}{% endfor %}{% generation %}{{ messages[-1].content }}{% endgeneration %}";
  const options = { chatTemplate: one };
  const error = await openingError(t.testdir(), [conversation(), conversation({ weight: 0 })], options);
  t.match(
    error.message,
    /rows\.jsonl:2: messages\[1\] is not to be trained on \(weight, train\), but the chat template's {% generation %} marks do not tell which part is of which message$/,
  );
});
