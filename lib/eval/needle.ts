// The needle test: a sentence with a number is hidden at some depth of a long text, and the model is asked for the
// number. An answer is right where the likeliest token is the right one throughout.

import { noGrad } from "../autograd/function.js";
import { CounterRandom } from "../data/philox.js";
import { ConfigError } from "../errors.js";
import type { Speaker } from "../generate/open.js";
import { conversation, encodePrompt, message } from "../generate/prompts.js";
import { argmax } from "../ops/index.js";
import type { NeedleCell } from "../report/eval_results.js";
import { endlessSentences } from "./haystack.js";

/** Whose number is asked for. */
const names = [
  ...["Lisbon", "Oslo", "Cairo", "Lima", "Kyoto", "Quito", "Turin", "Bergen"],
  ...["Tunis", "Perth", "Hanoi", "Malmo", "Porto", "Dakar", "Ghent", "Sofia"],
] as const;

export interface NeedleOptions {
  /** Tokens of the prompts; each stays below its length by less than a sentence. */
  readonly lengths: readonly number[];
  /** Percent of the text before the needle. */
  readonly depths: readonly number[];
  /** Of each length and depth, with other names, numbers and texts. */
  readonly trials: number;
  readonly seed: number;
  /** Sentences of the text; null: the built-in ones. */
  readonly haystack?: readonly string[] | null;
  /** Whether the text and the question are a user's turn of the chat template. */
  readonly chat?: boolean;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: ((done: { trials: number; of: number }) => void) | undefined;
}

/** A prompt with its answer. */
interface Trial {
  /** Prompt and answer. */
  readonly ids: Int32Array;
  /** The first token of the answer. */
  readonly answer: number;
}

/** A text of sentences with the needle among them, and the question. */
function compose(before: readonly string[], after: readonly string[], name: string, number: number) {
  const needle = `The secret number of ${name} is ${number}.`;
  return {
    text: [...before, needle, ...after].join(" "),
    question: `What is the secret number of ${name}?`,
    begin: `The secret number of ${name} is`,
    answer: ` ${number}`,
  };
}

/** Where two lists of ids begin to differ. */
function sharedLength(a: Int32Array, b: Int32Array): number {
  let i = 0;
  while (i < a.length && i < b.length && a[i] === b[i]) i++;
  return i;
}

/** Prompts of one length and depth. */
class Prompts {
  readonly #speaker: Speaker;
  readonly #options: NeedleOptions;

  constructor(speaker: Speaker, options: NeedleOptions) {
    this.#speaker = speaker;
    this.#options = options;
  }

  #encode(parts: ReturnType<typeof compose>, answer: string): Int32Array {
    const { text, question, begin } = parts;
    if (!this.#options.chat)
      return encodePrompt(this.#speaker, {
        kind: "text",
        text: `${text}\n\nQuestion: ${question}\nAnswer: ${begin}${answer}`,
      });
    return encodePrompt(this.#speaker, conversation([message("user", `${text}\n\n${question}`)]), begin + answer);
  }

  /** A trial of up to `length` tokens. Throws ConfigError where not even needle and question fit. */
  make(length: number, depth: number, trial: number): Trial {
    const { seed, haystack = null } = this.#options;
    // The same trial has the same name and number at all depths of a length, so that depths are compared alone.
    const random = new CounterRandom(seed, length * 1000 + trial);
    const name = names[random.below(names.length)] as string;
    const number = 10_000 + random.below(90_000);
    const source = endlessSentences(haystack, random);
    const { tokenizer } = this.#speaker as { tokenizer: NonNullable<Speaker["tokenizer"]> };
    const bare = compose([], [], name, number);
    const overhead = this.#encode(bare, bare.answer).length;
    const text: string[] = [];
    let used = overhead;
    for (const sentence of source) {
      used += tokenizer.encode(` ${sentence}`).length;
      if (used > length) break;
      text.push(sentence);
    }
    // Tokens of joined sentences may be more than those of each: some tokenizers join over the space.
    for (;;) {
      const at = Math.round((text.length * depth) / 100);
      const parts = compose(text.slice(0, at), text.slice(at), name, number);
      const ids = this.#encode(parts, parts.answer);
      if (ids.length <= length) {
        const prompt = this.#encode(parts, "");
        return { ids, answer: sharedLength(ids, prompt) };
      }
      if (text.length === 0)
        throw new ConfigError(
          `--lengths: ${length} tokens are too few: the needle and the question alone have ${ids.length}`,
          { length, needed: ids.length },
        );
      text.pop();
    }
  }
}

/** Whether the likeliest tokens are the answer's, and the mean loss (natural log) of these. */
async function ask({ model }: Speaker, { ids, answer }: Trial): Promise<{ found: boolean; loss: number }> {
  const count = ids.length - answer;
  using logits = noGrad(() => model.forward({ inputIds: ids }, { rows: [answer - 1, ids.length - 1] }));
  using likeliest = argmax(logits);
  const [indices, values] = await Promise.all([likeliest.data(), logits.data()]);
  const V = logits.shape[1] as number;
  let loss = 0;
  let found = true;
  for (let i = 0; i < count; i++) {
    const target = ids[answer + i] as number;
    found &&= Number(indices[i]) === target;
    const row = Float64Array.from(values.subarray(i * V, (i + 1) * V) as Float32Array);
    const most = row.reduce((a, b) => Math.max(a, b), Number.NEGATIVE_INFINITY);
    loss += most + Math.log(row.reduce((sum, value) => sum + Math.exp(value - most), 0)) - (row[target] as number);
  }
  return { found, loss: loss / count };
}

/** The cells by length, then depth. Throws ConfigError for a folder without a tokenizer and for lengths that are too short. */
export async function findNeedles(speaker: Speaker, options: NeedleOptions): Promise<NeedleCell[]> {
  const { lengths, depths, trials, signal } = options;
  if (speaker.tokenizer === null)
    throw new ConfigError(`${speaker.folder} has no tokenizer.json, which the needle test needs`, {
      path: speaker.folder,
    });
  const prompts = new Prompts(speaker, options);
  const cells: NeedleCell[] = [];
  const of = lengths.length * depths.length * trials;
  let done = 0;
  for (const length of lengths)
    for (const depth of depths) {
      const cell = { length, tokens: 0, depth, trials, found: 0, loss: null as number | null };
      let total = 0;
      for (let trial = 0; trial < trials; trial++) {
        signal?.throwIfAborted();
        const made = prompts.make(length, depth, trial);
        const { found, loss } = await ask(speaker, made);
        cell.tokens = Math.max(cell.tokens, made.ids.length);
        cell.found += found ? 1 : 0;
        total += loss;
        options.onProgress?.({ trials: ++done, of });
      }
      cells.push({ ...cell, loss: Number.isFinite(total) ? total / trials : null });
    }
  return cells;
}
