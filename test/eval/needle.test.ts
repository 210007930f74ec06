// The needle test: its prompts, and how answers are judged, by models that know or do not know the answer.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import t from "tap";
import { writeBytesTokenizer } from "../../lib/data/byte_tokenizer.js";
import { ChatTemplate } from "../../lib/data/chat.js";
import { CounterRandom } from "../../lib/data/philox.js";
import { loadTokenizer, resolveTokenizer, type TextTokenizer, type TokenizerSpec } from "../../lib/data/tokenizer.js";
import { endlessSentences, sentencesOf } from "../../lib/eval/haystack.js";
import { findNeedles, type NeedleOptions } from "../../lib/eval/needle.js";
import type { Speaker } from "../../lib/generate/open.js";
import type { CausalLM } from "../../lib/models/index.js";
import { tensor } from "../../lib/tensor/create.js";

const folder = mkdtempSync(join(tmpdir(), "longseq-needle-"));
t.teardown(() => rmSync(folder, { recursive: true }));
writeBytesTokenizer(folder, undefined);
const tokenizer: TextTokenizer = loadTokenizer(resolveTokenizer(folder) as TokenizerSpec);
const V = 259;

/** What a model that answers with `say` (text up to the answer, the right next id) would have been asked. */
function speaker(say: (before: string, right: number) => number): { speaker: Speaker; asked: string[] } {
  const asked: string[] = [];
  const model = {
    config: { vocabSize: V },
    forward({ inputIds }: { inputIds: Int32Array }, { rows: [begin, end] }: { rows: [number, number] }) {
      const ids = [...inputIds];
      asked.push(tokenizer.decode(ids, true));
      const logits = new Float32Array((end - begin) * V);
      for (let i = begin; i < end; i++) {
        const before = tokenizer.decode(ids.slice(0, i + 1), true);
        logits[(i - begin) * V + say(before, ids[i + 1] as number)] = 20;
      }
      return tensor(logits, { shape: [end - begin, V] });
    },
  };
  const template = () =>
    new ChatTemplate("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>", "test");
  return { speaker: { model: model as unknown as CausalLM, folder, tokenizer, template, stopIds: [] }, asked };
}

const options: NeedleOptions = { lengths: [400, 1000], depths: [0, 50, 100], trials: 2, seed: 5 };

t.test("prompts hold one needle at its depth, and as many tokens as fit", async (t) => {
  const { speaker: knows, asked } = speaker((_, right) => right);
  const cells = await findNeedles(knows, options);
  t.same(
    cells.map(({ length, depth, trials, found }) => [length, depth, trials, found]),
    [
      [400, 0, 2, 2],
      [400, 50, 2, 2],
      [400, 100, 2, 2],
      [1000, 0, 2, 2],
      [1000, 50, 2, 2],
      [1000, 100, 2, 2],
    ],
  );
  t.ok(cells.every(({ loss }) => (loss as number) < 1e-4));
  for (const [i, text] of asked.entries()) {
    const { length, depth, tokens } = cells[Math.floor(i / 2)] as (typeof cells)[number];
    const found =
      /^(.*?) ?The secret number of (\w+) is (\d{5})\. ?(.*)\n\nQuestion: What is the secret number of (\w+)\?\nAnswer: The secret number of (\w+) is (\d{5})$/s.exec(
        text,
      );
    t.ok(found, text.slice(0, 80));
    const [, before, name, number, after, asks, again, answer] = found as unknown as string[];
    t.equal(asks, name);
    t.equal(again, name);
    t.equal(answer, number);
    // Bytes are tokens, and BOS is one.
    t.ok(text.length + 1 <= length && text.length + 1 > length - 100, `${text.length} of ${length}`);
    t.ok(tokens >= text.length + 1 && tokens <= length);
    const share = (before as string).length / ((before as string).length + (after as string).length);
    t.ok(Math.abs(share - depth / 100) < 0.3, `at ${share}`);
    if (depth === 0) t.equal(before, "");
    if (depth === 100) t.equal(after, "");
  }
  // A trial asks for the same number at each depth, another trial for another.
  const numbers = asked.map((text) => text.slice(-5));
  t.equal(numbers[0], numbers[2]);
  t.not(numbers[0], numbers[1]);
  const again = speaker((_, right) => right);
  await findNeedles(again.speaker, options);
  t.same(again.asked, asked, "the same seed asks the same");
  const other = speaker((_, right) => right);
  await findNeedles(other.speaker, { ...options, seed: 6 });
  t.notSame(other.asked, asked);
});

t.test("an answer is right where all of it is the likeliest", async (t) => {
  // Knows all digits but the last.
  const { speaker: nearly } = speaker((before, right) => (/is \d{4}$/.test(before) ? 0 : right));
  const cells = await findNeedles(nearly, { ...options, lengths: [400] });
  t.ok(cells.every(({ found }) => found === 0));
  // Of a space and five digits one is wrong, by a loss of 20.
  t.ok(cells.every(({ loss }) => Math.abs((loss as number) - 20 / 6) < 1e-3));
  // Knows what lay in the second half.
  const { speaker: half } = speaker((before, right) => (before.indexOf("secret") > before.length * 0.4 ? right : 0));
  const some = await findNeedles(half, { ...options, lengths: [2000] });
  t.same(
    some.map(({ found }) => found),
    [0, 2, 2],
  );
});

t.test("as a turn of the chat template, in a text of one's own", async (t) => {
  const { speaker: chats, asked } = speaker((_, right) => right);
  const haystack = sentencesOf('One is here.  "Two, is it?" Three\nfollows! And four goes on without an end');
  t.same(haystack, ["One is here.", '"Two, is it?"', "Three follows!", "And four goes on without an end"]);
  await findNeedles(chats, { ...options, lengths: [300], depths: [100], trials: 1, chat: true, haystack });
  t.match(
    asked[0],
    /^<user>.*The secret number of \w+ is \d{5}\.\n\nWhat is .*\?<assistant>The secret number of \w+ is \d{5}$/s,
  );
  for (const sentence of haystack) t.match(asked[0], sentence);
});

t.test("the built-in text has each sentence once before one comes again", (t) => {
  const source = endlessSentences(null, new CounterRandom(1, 2));
  const first = Array.from({ length: 28 }, () => source.next().value as string);
  t.equal(new Set(first).size, 28);
  t.ok(first.every((sentence) => !/\d/.test(sentence)));
  t.same(sentencesOf(first.join(" ")), first);
  t.end();
});

t.test("what cannot be asked", async (t) => {
  const { speaker: knows } = speaker((_, right) => right);
  await t.rejects(findNeedles(knows, { ...options, lengths: [50] }), {
    code: "CONFIG",
    message: /50 tokens are too few/,
  });
  await t.rejects(findNeedles({ ...knows, tokenizer: null }, options), { code: "CONFIG", message: /tokenizer\.json/ });
});
