// `longseq generate`: what a model says behind prompts, or in a conversation on the terminal.

import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { createInterface } from "node:readline/promises";
import { type ChatMessage, readError } from "../data/rows.js";
import { openSpeaker, type Speaker } from "../generate/open.js";
import { conversation, encodePrompt, message, type Prompt, parseIds, readPrompts } from "../generate/prompts.js";
import { TextStream } from "../generate/text_stream.js";
import type { SamplingOptions } from "../models/sampler.js";
import { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { exitCode, type Output, UsageError } from "./output.js";

export interface GenerateCommandOptions extends Required<Omit<SamplingOptions, "seed">> {
  file: string[];
  ids: string[];
  chat: boolean;
  system?: string;
  maxNewTokens: number;
  seed: number;
  stop: string[];
  ignoreEos: boolean;
  logprobs: boolean;
  base?: string;
  chatTemplate?: string;
  device: string;
  dtype?: DType;
  threads?: number;
}

/** How a conversation begins. */
const opening = ({ system }: GenerateCommandOptions): ChatMessage[] =>
  system === undefined ? [] : [message("system", system)];

/** What followed a prompt. */
interface Answer {
  ids: number[];
  logProbabilities: number[];
  text: string;
  /** interrupted: by Ctrl-C. */
  finish: "eos" | "stop" | "length" | "interrupted";
}

export async function generate(
  dir: string,
  texts: string[],
  options: GenerateCommandOptions,
  output: Output,
): Promise<number> {
  const given = texts.length + options.file.length + options.ids.length;
  if (!options.chat && given === 0)
    throw new UsageError(
      "missing prompt; usage: longseq generate DIR PROMPT..., or --file FILE, or --chat for a conversation",
    );
  checkOptions(options, output);
  const { device: name, threads, dtype, base } = options;
  const device = new Device(name, threads === undefined ? {} : { threads });
  const chatTemplate = options.chatTemplate === undefined ? undefined : readText(options.chatTemplate);
  const speaker = await openSpeaker(dir, { device, dtype, base, chatTemplate });
  try {
    if (given === 0) return await chat(speaker, options, output);
    const { vocabSize } = speaker.model.config;
    const prompts: Prompt[] = [
      ...texts.map((text): Prompt => ({ kind: "text", text })),
      ...options.file.flatMap((file) => readPrompts(file, vocabSize)),
      ...options.ids.map((ids) => parseIds(ids, vocabSize)),
    ];
    const turns = prompts.map((prompt) =>
      options.chat && prompt.kind === "text"
        ? conversation([...opening(options), message("user", prompt.text)])
        : prompt,
    );
    await answerAll(speaker, turns, options, output);
    return exitCode.done;
  } finally {
    speaker.model.dispose();
  }
}

/** A text file that an option names. Throws IoError. */
export function readText(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw readError(file, error);
  }
}

/** Options that contradict each other, or have no effect. */
function checkOptions(options: GenerateCommandOptions, output: Output): void {
  if (options.stop.includes("")) throw new UsageError("--stop is empty; give the text that ends an answer");
  if (options.system !== undefined && !options.chat)
    throw new UsageError("--system begins a conversation, which --chat asks for");
  if (options.logprobs && !output.json) throw new UsageError("--logprobs is for --json");
  if (options.file.filter((file) => file === "-").length > 1)
    throw new UsageError("--file - reads standard input, which can be read once");
  const { temperature, topK, topP, minP } = options;
  const idle = Object.entries({ "--top-k": topK > 0, "--top-p": topP < 1, "--min-p": minP > 0 }).filter(([, on]) => on);
  if (temperature === 0 && idle.length > 0)
    output.note(`${idle.map(([name]) => name).join(", ")}: no effect without --temperature`);
}

/** Runs prompts; each new piece of text is told as it comes. */
async function run(
  speaker: Speaker,
  prompts: readonly Int32Array[],
  options: GenerateCommandOptions,
  onText: (sequence: number, text: string) => void,
  signal?: AbortSignal,
): Promise<Answer[]> {
  const { tokenizer, model } = speaker;
  const { temperature, topK, topP, minP, repetitionPenalty, seed, maxNewTokens, logprobs, ignoreEos } = options;
  if (options.stop.length > 0 && tokenizer === null)
    throw new UsageError(`--stop needs a tokenizer, and ${speaker.folder} has none`);
  const streams = prompts.map(() => tokenizer && new TextStream(tokenizer, options.stop));
  const answers = prompts.map((): Answer => ({ ids: [], logProbabilities: [], text: "", finish: "length" }));
  let end: (sequence: number) => void = () => {};
  const tell = (sequence: number, text: string): void => {
    if (text === "") return;
    onText(sequence, text);
  };
  for await (const { sequence, id, logProbability, finish } of model.generate(prompts, {
    ...{ temperature, topK, topP, minP, repetitionPenalty, seed, maxNewTokens },
    stopIds: ignoreEos ? [] : speaker.stopIds,
    logProbabilities: logprobs,
    onStart: (stop) => {
      end = stop;
    },
  })) {
    // What was said by then stays.
    if (signal?.aborted) {
      const answer = answers[sequence] as Answer;
      answer.finish = "interrupted";
      tell(sequence, streams[sequence]?.finish() ?? "");
      answer.text = streams[sequence]?.text ?? "";
      break;
    }
    const answer = answers[sequence] as Answer;
    const stream = streams[sequence];
    answer.ids.push(id);
    if (logProbability !== null) answer.logProbabilities.push(logProbability);
    if (finish !== "stop") tell(sequence, stream?.push(id) ?? "");
    if (finish !== null) {
      answer.finish = finish === "stop" ? "eos" : "length";
      tell(sequence, stream?.finish() ?? "");
    }
    answer.text = stream && (finish !== null || stream.stopped) ? stream.text : "";
    if (stream?.stopped && answer.finish !== "eos") {
      answer.finish = "stop";
      end(sequence);
    }
  }
  return answers;
}

async function answerAll(
  speaker: Speaker,
  prompts: readonly Prompt[],
  options: GenerateCommandOptions,
  output: Output,
): Promise<void> {
  const encoded = prompts.map((prompt) => encodePrompt(speaker, prompt));
  const begun = performance.now();
  // A single answer is shown as it grows.
  const live = prompts.length === 1 && !output.json && speaker.tokenizer !== null;
  const answers = await run(speaker, encoded, options, (_, text) => {
    if (live) output.stdout.write(text);
  });
  const seconds = (performance.now() - begun) / 1000;
  if (live) output.stdout.write("\n");
  for (const [i, answer] of answers.entries()) {
    const prompt = prompts[i] as Prompt;
    const said = prompt.kind === "text" ? prompt.text : null;
    output.record(answerRecord(speaker, options, { index: i, prompt: said, ids: encoded[i] as Int32Array }, answer));
    if (output.json || live) continue;
    if (prompts.length > 1) output.line(`--- ${i + 1} of ${prompts.length}`);
    output.line(speaker.tokenizer === null ? answer.ids.join(" ") : answer.text);
  }
  tellTotal(answers, seconds, output);
}

/** The line of an answer. */
const answerRecord = (
  { tokenizer }: Speaker,
  { logprobs }: GenerateCommandOptions,
  { index, prompt, ids: promptIds }: { index: number; prompt: string | null; ids: Int32Array },
  { ids, text, logProbabilities, finish }: Answer,
) => ({
  event: "generate",
  index,
  prompt,
  promptIds: [...promptIds],
  text: tokenizer === null ? null : text,
  ids,
  ...(logprobs && { logProbabilities }),
  finish,
});

function tellTotal(answers: readonly Answer[], seconds: number, output: Output): void {
  const tokens = answers.reduce((sum, { ids }) => sum + ids.length, 0);
  output.record({ event: "generated", tokens, seconds, tokensPerSecond: tokens / seconds });
  output.note(`${tokens} tokens in ${seconds.toFixed(2)} s, ${(tokens / seconds).toFixed(1)} tokens/s`);
}

/**
 * A conversation: a line is a turn, an empty one or the end of input ends it. Ctrl-C ends an answer, and the conversation
 * where there is none.
 */
async function chat(speaker: Speaker, options: GenerateCommandOptions, output: Output): Promise<number> {
  const messages = opening(options);
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: process.stdin.isTTY });
  let answering: AbortController | undefined;
  let code: number = exitCode.done;
  lines.on("SIGINT", () => {
    if (answering !== undefined) return answering.abort();
    code = 128 + constants.signals.SIGINT;
    output.stderr.write("\n");
    lines.close();
  });
  const answers: Answer[] = [];
  let seconds = 0;
  try {
    const entered = lines[Symbol.asyncIterator]();
    for (;;) {
      if (process.stdin.isTTY) output.stderr.write("> ");
      const { value: turn, done } = await entered.next();
      if (done || turn === "") break;
      messages.push(message("user", turn));
      const ids = encodePrompt(speaker, conversation(messages));
      const tell = (_: number, text: string): void => {
        if (!output.json) output.stdout.write(text);
      };
      answering = new AbortController();
      const begun = performance.now();
      const [answer] = (await run(speaker, [ids], options, tell, answering.signal)) as [Answer];
      seconds += (performance.now() - begun) / 1000;
      answering = undefined;
      if (!output.json) output.stdout.write("\n");
      output.record(answerRecord(speaker, options, { index: answers.length, prompt: turn, ids }, answer));
      answers.push(answer);
      messages.push(message("assistant", answer.text));
    }
    if (answers.length > 0) tellTotal(answers, seconds, output);
    return code;
  } finally {
    lines.close();
  }
}
