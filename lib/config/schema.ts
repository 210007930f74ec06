// The one schema of a training configuration: every key, its default and its meaning, in camelCase.
//
// YAML spells the same keys in snake_case (lib/config/load.ts maps them mechanically). Keys inside `model.init`,
// `model.override` and rope parameters are Hugging Face's and stay as they are.

import { z } from "zod";
import { dataEntries, trainOn } from "./data_entries.js";
import { parseCount, parseNumber, parseSize } from "./values.js";

/** What a zod issue of this schema carries for the error message. */
export interface ProblemParams {
  /** What would have been right; the message then reads "got VALUE (type); expected ...". */
  expected?: string;
}

/** A plain mapping with Hugging Face's own keys. */
export type HuggingFaceFields = Record<string, unknown>;

/** A value of the configuration: `parse` returns undefined for one that is refused. */
function leaf<In, Out>(expected: string, parse: (value: unknown) => Out | undefined) {
  return z.custom<In>().transform((value, context): Out => {
    const parsed = value === undefined ? undefined : parse(value);
    if (parsed === undefined) {
      context.issues.push({ code: "custom", input: value, message: expected, params: { expected } });
      return z.NEVER;
    }
    return parsed;
  });
}

const countHint = "(such as 500000, 500_000, 500K or 1M)";
const sizeHint = "(such as 80GB, 512MiB or a number of bytes)";

const count = (least: number) =>
  leaf<number | string, number>(
    least === 0 ? `a whole number, 0 or more ${countHint}` : `a whole number of at least ${least} ${countHint}`,
    (value) => {
      const number = parseCount(value);
      return number !== undefined && number >= least ? number : undefined;
    },
  );

const countOr = <const Word extends string | null>(words: readonly Word[], least: number) =>
  leaf<Word | number | string, Word | number>(
    `${words.map(String).join(" or ")} or a whole number of at least ${least} ${countHint}`,
    (value) => {
      if (words.includes(value as Word)) return value as Word;
      const number = parseCount(value);
      return number !== undefined && number >= least ? number : undefined;
    },
  );

const sizeOrAuto = (least: number) =>
  leaf<"auto" | number | string, "auto" | number>(
    `auto or a size of ${least === 0 ? "0 or more" : "more than 0"} bytes ${sizeHint}`,
    (value) => {
      if (value === "auto") return "auto";
      const bytes = parseSize(value);
      return bytes !== undefined && bytes >= least ? bytes : undefined;
    },
  );

const notNegative = leaf<number | string, number>("a number, 0 or more", (value) => {
  const number = parseNumber(value);
  return number !== undefined && number >= 0 ? number : undefined;
});

const choice = <const Choices extends readonly (string | number | boolean)[]>(...choices: Choices) =>
  leaf<Choices[number], Choices[number]>(
    choices.length === 1 ? String(choices[0]) : `one of ${choices.map(String).join(", ")}`,
    (value) => (choices.includes(value as Choices[number]) ? (value as Choices[number]) : undefined),
  );

const choiceOrNull = <const Choices extends readonly (string | boolean)[]>(...choices: Choices) =>
  leaf<Choices[number] | null, Choices[number] | null>(`one of ${choices.map(String).join(", ")}`, (value) =>
    value === null || choices.includes(value as Choices[number]) ? (value as Choices[number] | null) : undefined,
  );

const trueOrFalse = leaf<boolean, boolean>("true or false", (value) =>
  typeof value === "boolean" ? value : undefined,
);

const isText = (value: unknown): value is string =>
  typeof value === "string" && value.trim() !== "" && !value.includes("\0");

const text = (expected: string) => leaf<string, string>(expected, (value) => (isText(value) ? value : undefined));

const textOrNull = (expected: string) =>
  leaf<string | null, string | null>(expected, (value) => (value === null || isText(value) ? value : undefined));

const texts = (expected: string) =>
  leaf<string | readonly string[] | null, string[]>(expected, (value) => {
    const list = typeof value === "string" ? [value] : value === null ? [] : value;
    return Array.isArray(list) && list.every((one) => typeof one === "string" && one !== "") ? [...list] : undefined;
  });

// Deeper nesting than any config.json has; an object of the API that contains itself ends here.
const deepest = 32;

/** True for what a YAML or JSON file can hold. */
function isData(value: unknown, depth: number): boolean {
  if (value === null || typeof value === "string" || typeof value === "boolean") return true;
  if (typeof value === "number") return Number.isFinite(value);
  if (depth >= deepest) return false;
  return Array.isArray(value) ? value.every((inner) => isData(inner, depth + 1)) : isMapping(value, depth);
}

function isMapping(value: unknown, depth = 0): value is HuggingFaceFields {
  return (
    typeof value === "object" &&
    value !== null &&
    [Object.prototype, null].includes(Object.getPrototypeOf(value)) &&
    !Object.hasOwn(value, "__proto__") &&
    Object.values(value).every((inner) => isData(inner, depth + 1))
  );
}

const fieldsOrNull = (expected: string) =>
  leaf<HuggingFaceFields | null, HuggingFaceFields | null>(expected, (value) =>
    value === null || isMapping(value) ? (value === null ? null : structuredClone(value)) : undefined,
  );

/** Keys of config.json that `model.override` may replace. */
export interface ModelOverride {
  rope_theta?: number;
  rope_scaling?: HuggingFaceFields | null;
  max_position_embeddings?: number;
  output_router_logits?: boolean;
  router_aux_loss_coef?: number;
  tie_word_embeddings?: boolean;
}

const overrideKeys = [
  "rope_theta",
  "rope_scaling",
  "max_position_embeddings",
  "output_router_logits",
  "router_aux_loss_coef",
  "tie_word_embeddings",
];
const override = leaf<ModelOverride | null, ModelOverride>(
  "a mapping with some of rope_theta (a number above 0), rope_scaling (a mapping or null), " +
    "max_position_embeddings (a whole number of at least 1), output_router_logits and tie_word_embeddings (true or false), " +
    "and router_aux_loss_coef (a number of at least 0)",
  (value) => {
    if (value === null) return {};
    if (!isMapping(value) || Object.keys(value).some((key) => !overrideKeys.includes(key))) return undefined;
    const result: ModelOverride = {};
    if (value.rope_theta !== undefined) {
      const theta = parseNumber(value.rope_theta);
      if (theta === undefined || theta <= 0) return undefined;
      result.rope_theta = theta;
    }
    if (value.rope_scaling !== undefined) {
      if (value.rope_scaling !== null && !isMapping(value.rope_scaling)) return undefined;
      result.rope_scaling = structuredClone(value.rope_scaling);
    }
    if (value.max_position_embeddings !== undefined) {
      const positions = parseCount(value.max_position_embeddings);
      if (positions === undefined || positions < 1) return undefined;
      result.max_position_embeddings = positions;
    }
    for (const key of ["output_router_logits", "tie_word_embeddings"] as const) {
      const given = value[key];
      if (given === undefined) continue;
      if (typeof given !== "boolean") return undefined;
      result[key] = given;
    }
    if (value.router_aux_loss_coef !== undefined) {
      const coefficient = parseNumber(value.router_aux_loss_coef);
      if (coefficient === undefined || coefficient < 0) return undefined;
      result.router_aux_loss_coef = coefficient;
    }
    return result;
  },
);

const betas = leaf<readonly (number | string)[], [number, number]>(
  "two numbers, each at least 0 and below 1",
  (value) => {
    if (!Array.isArray(value) || value.length !== 2) return undefined;
    const pair = value.map(parseNumber);
    return pair.every((beta) => beta !== undefined && beta >= 0 && beta < 1) ? (pair as [number, number]) : undefined;
  },
);

const device = leaf<string, string>("auto, cpu, cuda, cuda:N or meta", (value) =>
  typeof value === "string" && /^(auto|cpu|cuda|cuda:(0|[1-9]\d{0,3})|meta)$/.test(value) ? value : undefined,
);

/** The model: a folder, or fields from which a randomly initialised one is made. */
const model = z
  .strictObject({
    path: textOrNull("the path of a Hugging Face model folder").default(null),
    init: fieldsOrNull("a mapping with the fields of a config.json").default(null),
    /** auto: the checkpoint's on CUDA, float32 on the CPU. */
    dtype: choice("auto", "float32", "bfloat16").default("auto"),
    override: override.default({}),
    /** How the frozen weights of a run of adapters are stored. */
    baseFormat: choice("native", "int8", "float8").default("native"),
  })
  .superRefine((value, context) => {
    if (value.path !== null && value.init !== null)
      context.addIssue({
        code: "custom",
        path: ["init"],
        message: "given together with {model.path}; give only one of them",
      });
    if (value.path === null && value.init === null)
      context.addIssue({
        code: "custom",
        path: ["path"],
        message: "missing; give the path of a Hugging Face model folder here, or config.json's fields as {model.init}",
      });
  })
  .prefault({});

const textsOrNull = (expected: string) =>
  leaf<readonly string[] | null, string[] | null>(expected, (value) =>
    value === null ? null : Array.isArray(value) && value.length > 0 && value.every(isText) ? [...value] : undefined,
  );

const numberOrNull = (expected: string, fine: (number: number) => boolean) =>
  leaf<number | string | null, number | null>(expected, (value) => {
    const number = value === null ? null : parseNumber(value);
    return number === null || (number !== undefined && fine(number)) ? number : undefined;
  });

/** Training by low-rank adapters, in PEFT's terms: wanted where any of these is given. */
const adapter = z
  .strictObject({
    /** A folder of PEFT's files that training goes on from; null: adapters begin afresh. */
    path: textOrNull("the path of a folder with a PEFT adapter, or null").default(null),
    /** Rank. null: 8. */
    r: countOr([null], 1).default(null),
    /** null: 8. */
    alpha: numberOrNull("a number above 0", (number) => number > 0).default(null),
    /** Ends of module names, an expression for whole names, or all-linear, which null is too. */
    targetModules: leaf<string | readonly string[] | null, string | string[] | null>(
      "a list of names of modules (such as [q_proj, v_proj]), all-linear, or a regular expression for whole names",
      (value) => {
        if (value === null || isText(value)) return value;
        return Array.isArray(value) && value.length > 0 && value.every(isText) ? [...value] : undefined;
      },
    ).default(null),
    /** Ends of the names of modules that are trained as they are. */
    modulesToSave: textsOrNull("a list of names of modules (such as [lm_head]), or null").default(null),
    /** null: that of the folder, or 0. */
    dropout: numberOrNull("a number from 0 to below 1", (number) => number >= 0 && number < 1).default(null),
    /** Whether the scale is alpha / sqrt(r) instead of alpha / r. null: it is not. */
    rslora: choiceOrNull(true, false).default(null),
    /** How A begins. null: true, as PEFT's init_lora_weights. */
    init: choiceOrNull(true, "gaussian").default(null),
    /** What A and B are stored as. null: float32. */
    dtype: choiceOrNull("float32", "bfloat16").default(null),
  })
  .superRefine((value, context) => {
    if (value.path !== null && value.init !== null)
      context.addIssue({
        code: "custom",
        path: ["init"],
        message: "given together with {adapter.path}, whose values the adapters begin with; give only one of them",
      });
  })
  .prefault({});

const data = z
  .strictObject({
    train: dataEntries(1, true),
    eval: dataEntries(0, false).default([]),
    /** null: the model's; "bytes" needs no file. */
    tokenizer: textOrNull('the path of a tokenizer.json, or "bytes"').default(null),
    /** Input tokens of a sequence; it has one target fewer, so one token is too few. */
    sequenceLength: count(2),
    /** null: the tokenizer's own. */
    chatTemplate: textOrNull("the path of a Jinja file, or the name of one of the tokenizer's templates").default(null),
    trainOn: trainOn.default("assistant"),
    packing: trueOrFalse.default(true),
    overlong: choice("raise", "truncate", "split", "drop").default("raise"),
    shuffle: trueOrFalse.default(true),
  })
  // Required keys are reported one by one, also where the whole section is missing.
  .prefault({} as never);

const train = z
  .strictObject({
    steps: countOr([null], 1).default(null),
    epochs: countOr([null], 1).default(null),
    /** Sequences a step, over the whole job. */
    batchSize: leaf<number | string, number>(`a whole number from 1 to 1000000 ${countHint}`, (value) => {
      const number = parseCount(value);
      // The sequences of a step are held together; a larger number is a slip that would only read until memory ends.
      return number !== undefined && number >= 1 && number <= 1e6 ? number : undefined;
    }).default(1),
    microBatchSize: count(1).default(1),
    learningRate: notNegative.default(1e-5),
    schedule: choice("constant", "linear", "cosine", "wsd").default("cosine"),
    warmupSteps: count(0).default(0),
    minLearningRate: notNegative.default(0),
    /** Of `schedule: wsd`; null: a fifth of the steps. */
    decaySteps: countOr([null], 1).default(null),
    weightDecay: notNegative.default(0),
    betas: betas.default([0.9, 0.95]),
    eps: notNegative.default(1e-8),
    /** 0 (or null): no clipping. */
    clipGradNorm: leaf<number | string | null, number>("a number above 0, or 0 for no clipping", (value) => {
      const norm = value === null ? 0 : parseNumber(value);
      return norm !== undefined && norm >= 0 ? norm : undefined;
    }).default(1),
    seed: count(0).default(0),
    evalEvery: count(0).default(0),
    /** Steps between samples: what the model says behind samplePrompts, in up to sampleTokens tokens. 0: none. */
    sampleEvery: count(0).default(0),
    samplePrompts: texts("a list of prompts (texts)").default([]),
    sampleTokens: count(1).default(64),
    deterministic: choice("auto", true, false).default("auto"),
  })
  .superRefine((value, context) => {
    const problem = (key: string, message: string) => context.addIssue({ code: "custom", path: [key], message });
    if (value.steps !== null && value.epochs !== null)
      problem("epochs", "given together with {train.steps}; give only one of them");
    if (value.steps === null && value.epochs === null)
      problem("steps", "missing; give a number of steps here, or a number of {train.epochs}");
    if (value.batchSize % value.microBatchSize !== 0)
      problem(
        "microBatchSize",
        `got ${value.microBatchSize}; expected a divisor of {train.batchSize}, which is ${value.batchSize}`,
      );
    if (value.sampleEvery > 0 && value.samplePrompts.length === 0)
      problem("samplePrompts", `missing; give prompts, since {train.sampleEvery} is ${value.sampleEvery}`);
    if (value.minLearningRate > value.learningRate)
      problem(
        "minLearningRate",
        `got ${value.minLearningRate}; expected at most {train.learningRate}, which is ${value.learningRate}`,
      );
    if (value.decaySteps !== null && value.schedule !== "wsd")
      problem("decaySteps", `only {train.schedule}: wsd uses it, and the schedule is ${value.schedule}; leave it out`);
    if (value.steps !== null && value.warmupSteps > value.steps)
      problem("warmupSteps", `got ${value.warmupSteps}; expected at most {train.steps}, which is ${value.steps}`);
    else if (value.steps !== null && value.decaySteps !== null && value.warmupSteps + value.decaySteps > value.steps)
      problem(
        "decaySteps",
        `got ${value.decaySteps}; with ${value.warmupSteps} warm-up steps expected at most ` +
          `${value.steps - value.warmupSteps}, as {train.steps} is ${value.steps}`,
      );
  })
  .prefault({});

const parallel = z
  .strictObject({
    /** auto: world / data. */
    sequence: countOr(["auto"], 1).default("auto"),
    ring: countOr(["auto"], 1).default("auto"),
    data: count(1).default(1),
    /** auto: 0 on one rank, 3 on more. */
    zero: choice("auto", 0, 1, 2, 3).default("auto"),
  })
  .prefault({});

const memory = z
  .strictObject({
    /** auto: the GPU's free memory, or 80% of RAM shared by the node's ranks on the CPU. Bytes. */
    deviceLimit: sizeOrAuto(1).default("auto"),
    /** auto: 80% of RAM shared by the node's ranks. Bytes. */
    hostLimit: sizeOrAuto(1).default("auto"),
    tileMlp: countOr(["auto", "off"], 1).default("auto"),
    tileLoss: countOr(["auto", "off"], 1).default("auto"),
    headChunks: countOr(["auto"], 1).default("auto"),
    checkpoint: z
      .strictObject({
        every: countOr(["auto"], 0).default("auto"),
        keepAttention: choice("auto", true, false).default("auto"),
        offload: choice("auto", "none", "host", "disk").default("auto"),
        deviceBytes: sizeOrAuto(0).default("auto"),
        format: choice("native", "int8", "float8").default("native"),
        /** null: DIR/offload. */
        directory: textOrNull("the path of a folder, or null").default(null),
      })
      .prefault({}),
    offload: z
      .strictObject({
        optimizer: choice("none", "host").default("none"),
        params: choice("none", "host").default("none"),
        gradients: choice("none", "host").default("none"),
      })
      .prefault({}),
  })
  .prefault({});

const output = z
  .strictObject({
    dir: text("the path of the run's folder"),
    saveEvery: count(0).default(0),
    keep: count(1).default(2),
    resume: choice("auto", "never").default("auto"),
    traceSteps: count(0).default(0),
    trackers: z.array(choice("tensorboard")).default([]),
    command: text("a command of the shell, which gets a JSON line an event on its standard input")
      .nullable()
      .default(null),
  })
  .prefault({} as never);

/** Whether adapters are trained, and the model's own weights are frozen. */
export const wantsAdapter = (section: z.output<typeof adapter>): boolean =>
  Object.values(section).some((value) => value !== null);

/** The whole configuration. Input: what a user may write, in camelCase; output: every key present, sizes in bytes. */
export const configSchema = z
  .strictObject({
    model,
    adapter,
    data,
    train,
    device: device.default("auto"),
    /** Of the CPU backend, a rank. */
    threads: leaf<"auto" | number | string, "auto" | number>("auto or a whole number from 1 to 1024", (value) => {
      const number = value === "auto" ? value : parseCount(value);
      return number === "auto" || (number !== undefined && number >= 1 && number <= 1024) ? number : undefined;
    }).default("auto"),
    attention: choice("auto", "cudnn", "native").default("auto"),
    parallel,
    memory,
    output,
  })
  .superRefine((value, context) => {
    if (value.train.evalEvery > 0 && value.data.eval.length === 0)
      context.addIssue({
        code: "custom",
        path: ["train", "evalEvery"],
        message: `got ${value.train.evalEvery}, but there is nothing to evaluate on; give {data.eval}, or set this to 0`,
      });
    if (value.model.baseFormat !== "native" && !wantsAdapter(value.adapter))
      context.addIssue({
        code: "custom",
        path: ["model", "baseFormat"],
        message:
          `got ${value.model.baseFormat}, which is for weights that are frozen, but the model is trained itself; ` +
          "give an {adapter}, or leave this out",
      });
    if (value.model.baseFormat !== "native" && value.memory.checkpoint.every === 0)
      context.addIssue({
        code: "custom",
        path: ["memory", "checkpoint", "every"],
        message:
          `got 0, but {model.baseFormat} is ${value.model.baseFormat}: without checkpoints a backward would hold every ` +
          "layer's unpacked weights; set this to 1 or more, or leave it out",
      });
    if (value.attention === "cudnn" && (value.device === "cpu" || value.device === "meta"))
      context.addIssue({
        code: "custom",
        path: ["attention"],
        message: `got cudnn, which runs on NVIDIA's GPUs, but {device} is ${value.device}; set {device}: cuda, or leave this out`,
      });
    if (value.attention === "cudnn" && value.train.deterministic === true)
      context.addIssue({
        code: "custom",
        path: ["attention"],
        message:
          "got cudnn, whose deterministic backward takes memory quadratic in the length, but {train.deterministic} is " +
          "true; leave one of them out",
      });
    const { batchSize, microBatchSize } = value.train;
    // A micro-batch that does not divide the batch was reported above.
    if (batchSize % microBatchSize === 0 && batchSize % (microBatchSize * value.parallel.data) !== 0)
      context.addIssue({
        code: "custom",
        path: ["train", "batchSize"],
        message:
          `got ${value.train.batchSize}; expected a multiple of {train.microBatchSize} x {parallel.data}, which is ` +
          `${value.train.microBatchSize * value.parallel.data}`,
      });
  });

/** What a user may give to `new Trainer(config)`: the YAML's keys in camelCase. */
export type ConfigInput = z.input<typeof configSchema>;

/** A complete configuration: defaults filled in, numbers parsed, sizes in bytes. */
export type Config = z.output<typeof configSchema>;

/** Paths (camelCase, joined by ".") below which keys are not ours and are left as they are. */
export const verbatimPaths: readonly string[] = ["model.init", "model.override"];
/** Keys that are known below a verbatim path, where only some are. */
export const verbatimKeys: Readonly<Record<string, readonly string[]>> = { "model.override": overrideKeys };

type Shape = Record<string, z.ZodType>;

/** The keys of a section of the schema, or null for a value. */
export function sectionShape(schema: z.ZodType): Shape | null {
  let inner: z.ZodType = schema;
  while (inner instanceof z.ZodPrefault || inner instanceof z.ZodDefault) inner = inner.unwrap() as z.ZodType;
  return inner instanceof z.ZodObject ? (inner.shape as Shape) : null;
}

/** Every value's path in the schema, camelCase, in the schema's order. */
export function leafPaths(schema: z.ZodType = configSchema, prefix: readonly string[] = []): string[][] {
  const shape = sectionShape(schema);
  if (shape === null) return [[...prefix]];
  return Object.entries(shape).flatMap(([key, value]) => leafPaths(value, [...prefix, key]));
}
