// What is said before a run: positions beyond those of the model, and a schedule that jumps where a run goes on.

import type { Config } from "../config/index.js";
import type { Dataset } from "../data/index.js";
import { DataError } from "../errors.js";
import type { ModelConfig } from "../models/config.js";
import { familyNamed } from "../models/registry.js";
import { learningRateAt, type ScheduleOptions } from "./schedule.js";
import type { TrainerState } from "./state.js";

/** Throws DataError for documents beyond positions that are learned, of which there are no more. */
export function refuseLongDocuments(
  { learnedPositions, maxPositionEmbeddings: most, file }: ModelConfig,
  longest: number,
) {
  if (!learnedPositions || longest <= most) return;
  throw new DataError(
    `${file} has ${most} learned positions, and documents have up to ${longest} tokens; set data.sequence_length to ` +
      `${most} or less, with data.overlong: split or truncate`,
    { longest, most },
  );
}

/** undefined where config.json names no dropout; what it names is not applied. */
export function remarkOnDropout({ family, fields, file }: ModelConfig): string | undefined {
  const named = (familyNamed(family).dropout ?? []).filter((key) => typeof fields[key] === "number" && fields[key] > 0);
  if (named.length === 0) return undefined;
  const list = named.map((key) => `${key} ${fields[key]}`).join(", ");
  return `${file} names dropout (${list}), as its model was trained; this run trains without`;
}

/** undefined where every document lies within max_position_embeddings. */
export function remarkOnPositions(model: ModelConfig, longest: number, initialised: boolean): string | undefined {
  const { maxPositionEmbeddings: most, ropes, file } = model;
  if (longest <= most) return undefined;
  const type = ropes[0]?.type;
  const said = `${file}: max_position_embeddings is ${most}, and documents have up to ${longest} tokens`;
  if (type === "dynamic")
    return (
      `${said}: dynamic scaling stretches what is longer, as in transformers, and depends on max_position_embeddings, ` +
      "which therefore stays in the export"
    );
  const limit = `max_position_embeddings: ${longest}`;
  const after = `${said}: programs that load the export may cut or refuse input that long`;
  if (initialised) return `${after}; set ${limit} in model.init`;
  const stretched =
    type === "default"
      ? `, and {${limit}, rope_scaling: {rope_type: yarn, factor: ${Math.ceil(longest / most)}}} also stretches the positions, ` +
        "which the model has not seen beyond that limit"
      : "";
  return `${after}; model.override: {${limit}} writes the longer limit to it${stretched}`;
}

/** A jump of less than this share of learning_rate is no jump. */
const SMALL = 0.01;

/** undefined where the learning rate of the next step follows from that of the last one. */
export function remarkOnSchedule(
  state: TrainerState,
  config: Config,
  data: Dataset,
  steps: number,
): string | undefined {
  const { train } = config;
  const before = (state.config as { train: { steps: number | null; epochs: number | null } }).train;
  const stepsBefore = before.steps ?? data.totalSteps(before.epochs as number, train.batchSize);
  return describeJump(state.step, stepsBefore, steps, train);
}

/** As remarkOnSchedule, of the numbers alone: `step` steps are done of what were to be `before` and now are `steps`. */
export function describeJump(step: number, before: number, steps: number, train: ScheduleOptions): string | undefined {
  if (step === 0 || step >= steps || before === steps) return undefined;
  const last = learningRateAt(step - 1, before, train);
  // What the last step would have used had the run been this long from the start.
  if (Math.abs(learningRateAt(step - 1, steps, train) - last) <= SMALL * train.learningRate) return undefined;
  const next = learningRateAt(step, steps, train);
  return (
    `the run was to have ${before} steps and now has ${steps}, which moves its ${train.schedule} schedule: step ${step} ` +
    `used a learning rate of ${show(last)}, step ${step + 1} uses ${show(next)}; where that is not meant, start another ` +
    "run from the exported model with the schedule it needs"
  );
}

const show = (rate: number): string => String(Number(rate.toPrecision(4)));
