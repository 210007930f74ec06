// Samples in the middle of a run and at its end: what the model says behind a few prompts, so that one can read how it
// learns.

import { loadTokenizer, resolveTokenizer, type TextTokenizer } from "../data/tokenizer.js";
import { ConfigError, OutOfMemoryError } from "../errors.js";
import type { RunItem, SampleEvent } from "../report/events.js";
import { dataOptions } from "./data_options.js";
import type { Session, Training } from "./session.js";

/** Whether they belong behind this step. */
export function samplesDue({ session }: Training, step: number): boolean {
  const { sampleEvery } = session.config.train;
  return sampleEvery > 0 && (step === session.steps || step % sampleEvery === 0);
}

/** The prompts as the model reads them. */
export interface SamplePrompts {
  readonly tokenizer: TextTokenizer;
  readonly prompts: readonly { readonly text: string; readonly ids: Int32Array }[];
}

/** Opens what samples need; null where none are asked for. Throws ConfigError. */
export function openSamples({ config, job }: Session): SamplePrompts | null {
  const { sampleEvery, samplePrompts } = config.train;
  if (sampleEvery === 0) return null;
  if (job.world > 1)
    throw new ConfigError(
      `train.sample_every is ${sampleEvery}, but the run has ${job.world} ranks: samples are made on one rank alone so far; ` +
        "leave it out, and ask a saved model by longseq generate",
    );
  const { tokenizer: where, vocabSize = Number.POSITIVE_INFINITY } = dataOptions(config, false);
  const spec = where === undefined ? null : resolveTokenizer(where);
  if (spec === null)
    throw new ConfigError(
      "train.sample_every: prompts are texts, and there is no tokenizer; set data.tokenizer, or leave it out",
    );
  const tokenizer = loadTokenizer(spec);
  const prompts = samplePrompts.map((text) => {
    const own = tokenizer.encode(text);
    const { prefixIds } = tokenizer;
    const ids = prefixIds.every((id, i) => own[i] === id) ? own : Int32Array.of(...prefixIds, ...own);
    const beyond = ids.find((id) => id >= vocabSize);
    if (beyond !== undefined || ids.length === 0)
      throw new ConfigError(
        `train.sample_prompts: ${JSON.stringify(text)} ${
          beyond === undefined ? "has no tokens" : `has token ${beyond}, but the model has ${vocabSize}`
        }`,
      );
    return { text, ids };
  });
  return { tokenizer, prompts };
}

/** Greedy answers to all prompts, with the parameters as they are. */
export async function* sampleIfDue(training: Training): AsyncGenerator<RunItem, void, void> {
  const { session, model, state, samples } = training;
  if (samples === null || !samplesDue(training, state.step)) return;
  const { tokenizer, prompts } = samples;
  const answers = prompts.map((): number[] => []);
  const stopIds = tokenizer.eosId === null ? [] : [tokenizer.eosId];
  model.device.step = `the samples after step ${state.step}`;
  try {
    for await (const { sequence, id } of model.generate(
      prompts.map(({ ids }) => ids),
      { maxNewTokens: session.config.train.sampleTokens, stopIds, signal: session.signal },
    ))
      answers[sequence]?.push(id);
  } catch (error) {
    if (!(error instanceof OutOfMemoryError)) throw error;
    yield session.record({
      event: "warning",
      message: `no samples after step ${state.step}: ${error.message}`,
    });
    return;
  } finally {
    model.device.step = "";
  }
  for (const [i, { text: prompt }] of prompts.entries()) {
    const ids = answers[i] as number[];
    const event: SampleEvent = { event: "sample", step: state.step, prompt, text: tokenizer.decode(ids, true), ids };
    yield session.record(event);
  }
}
