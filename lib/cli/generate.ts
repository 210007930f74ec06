// `longseq generate`: what a model says behind prompts, or in a conversation on the terminal.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline/promises";
import type { ChatMessage } from "../data/rows.js";
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
  finish: "eos" | "stop" | "length";
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
  const { device: name, threads, dtype, base } = options;
  const device = new Device(name, threads === undefined ? {} : { threads });
  const chatTemplate = options.chatTemplate === undefined ? undefined : readFileSync(options.chatTemplate, "utf8");
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

/** Runs prompts; each new piece of text is told as it comes. */
async function run(
  speaker: Speaker,
  prompts: readonly Int32Array[],
  options: GenerateCommandOptions,
  onText: (sequence: number, text: string) => void,
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
    output.record({
      event: "generate",
      index: i,
      prompt: prompt.kind === "text" ? prompt.text : null,
      promptIds: [...(encoded[i] as Int32Array)],
      text: speaker.tokenizer === null ? null : answer.text,
      ids: answer.ids,
      ...(options.logprobs && { logProbabilities: answer.logProbabilities }),
      finish: answer.finish,
    });
    if (output.json || live) continue;
    if (prompts.length > 1) output.line(`--- ${i + 1} of ${prompts.length}`);
    output.line(speaker.tokenizer === null ? answer.ids.join(" ") : answer.text);
  }
  const tokens = answers.reduce((sum, { ids }) => sum + ids.length, 0);
  output.record({ event: "generated", tokens, seconds, tokensPerSecond: tokens / seconds });
  output.note(`${tokens} tokens in ${seconds.toFixed(2)} s, ${(tokens / seconds).toFixed(1)} tokens/s`);
}

/** A conversation: a line is a turn, an empty one or the end of input ends it. */
async function chat(speaker: Speaker, options: GenerateCommandOptions, output: Output): Promise<number> {
  const messages = opening(options);
  const lines = createInterface({ input: process.stdin, output: process.stderr, terminal: process.stdin.isTTY });
  try {
    const entered = lines[Symbol.asyncIterator]();
    for (;;) {
      if (process.stdin.isTTY) output.stderr.write("> ");
      const { value: turn, done } = await entered.next();
      if (done || turn === "") return exitCode.done;
      messages.push(message("user", turn));
      const ids = encodePrompt(speaker, conversation(messages));
      const [answer] = (await run(speaker, [ids], options, (_, text) => {
        if (!output.json) output.stdout.write(text);
      })) as [Answer];
      if (!output.json) output.stdout.write("\n");
      output.record({ event: "generate", prompt: turn, promptIds: [...ids], ...answer });
      messages.push(message("assistant", answer.text));
    }
  } finally {
    lines.close();
  }
}
