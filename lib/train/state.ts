// A run's state on the disk: DIR/checkpoints/step-N with parameters, optimizer and position, and what it takes to resume.

import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { checkpointPath, writeFolder } from "../checkpoint/atomic.js";
import {
  openModelFolder,
  type SafeDtype,
  SafetensorsFile,
  SafetensorsWriter,
  writeModel,
} from "../checkpoint/safetensors.js";
import { type Config, canonicalJson, configDifference, parseConfigObject } from "../config/index.js";
import { showValue, toCamel } from "../config/values.js";
import type { Cursor } from "../data/index.js";
import { ConfigError, FormatError } from "../errors.js";
import type { DType } from "../tensor/dtype.js";
import type { Tensor } from "../tensor/tensor.js";
import type { MemoryPlan } from "./memory_plan.js";

/** What a checkpoint holds beside tensors: trainer.json. */
export interface TrainerState {
  version: 1;
  /** Finished steps. */
  step: number;
  /** The next sequence to be taken. */
  cursor: Cursor;
  /** Of the training data. */
  fingerprint: string;
  plan: MemoryPlan;
  /** Steps left out so far because they were not finite, and how many of them in a row at the end. */
  skipped: number;
  skippedInARow: number;
  /** The last step that was followed by an evaluation; 0 for none. */
  evaluated: number;
  /** As canonicalJson writes it. */
  config: Record<string, unknown>;
}

const STATE_FILE = "trainer.json";
const OPTIMIZER_FILE = "optimizer.safetensors";

const SAFE: Partial<Record<DType, SafeDtype>> = {
  float32: "F32",
  bfloat16: "BF16",
  float64: "F64",
  int32: "I32",
  int64: "I64",
  uint8: "U8",
};

type Named = readonly (readonly [name: string, tensor: Tensor])[];

const declarations = (tensors: Named) =>
  tensors.map(([name, tensor]) => ({ name, dtype: SAFE[tensor.dtype] as SafeDtype, shape: tensor.shape }));

/**
 * Writes DIR/checkpoints/step-N; it appears complete or not at all. Returns its path. Throws IoError where the disk is
 * full or read-only, with all earlier checkpoints untouched.
 */
export async function saveCheckpoint(
  folder: string,
  state: TrainerState,
  parameters: Named,
  optimizer: Named,
): Promise<string> {
  const written = await writeFolder(
    checkpointPath(folder, state.step),
    async (draft) => {
      const files = await writeModel(
        draft.path,
        declarations(parameters).map((declaration, i) => ({
          ...declaration,
          load: () => (parameters[i] as (typeof parameters)[number])[1],
        })),
      );
      for (const [name, digest] of files) draft.note(name, digest);
      const writer = await SafetensorsWriter.create(await draft.file(OPTIMIZER_FILE), declarations(optimizer), {});
      try {
        for (const [name, tensor] of optimizer) await writer.write(name, tensor);
        draft.note(OPTIMIZER_FILE, await writer.finish());
      } catch (error) {
        await writer.abandon();
        throw error;
      }
      await writeFile(await draft.file(STATE_FILE), `${JSON.stringify(state, null, 2)}\n`);
    },
    { info: { step: state.step } },
  );
  return written.path;
}

/** Reads trainer.json of a verified checkpoint. */
export async function readState(folder: string): Promise<TrainerState> {
  const file = join(folder, STATE_FILE);
  let state: TrainerState;
  try {
    state = JSON.parse(await readFile(file, "utf8")) as TrainerState;
  } catch (error) {
    throw new FormatError(`${file}: cannot be read as JSON: ${(error as Error).message}`, { file }, { cause: error });
  }
  if (state.version !== 1)
    throw new FormatError(`${file}: version is ${String(state.version)}; this release reads version 1`, { file });
  return state;
}

/** Fills parameters and optimizer from a verified checkpoint; each tensor must have the stored name, shape and dtype. */
export async function loadTensors(folder: string, parameters: Named, optimizer: Named): Promise<void> {
  using model = await openModelFolder(folder);
  using state = await SafetensorsFile.open(join(folder, OPTIMIZER_FILE));
  for (const [source, tensors] of [
    [model, parameters],
    [state, optimizer],
  ] as const) {
    for (const [name, tensor] of tensors) {
      const entry = source.entries.get(name);
      const wanted = `${SAFE[tensor.dtype]} [${tensor.shape.join(", ")}]`;
      const found = entry && `${entry.dtype} [${entry.shape.join(", ")}]`;
      if (found !== wanted)
        throw new FormatError(
          `${source.path}: tensor ${JSON.stringify(name)} is ${found ?? "missing"}; the run needs ${wanted}`,
          { path: source.path, tensor: name },
        );
      await source.read(name, tensor);
    }
    if (source.entries.size !== tensors.length)
      throw new FormatError(`${source.path}: it holds ${source.entries.size} tensors; the run has ${tensors.length}`, {
        path: source.path,
      });
  }
}

/** The configuration as a checkpoint stores it. */
export function configRecord(config: Config): Record<string, unknown> {
  return JSON.parse(canonicalJson(config)) as Record<string, unknown>;
}

/** A stored configuration in the API's spelling; Hugging Face's own keys stay as they are. */
function camelKeys(value: unknown, path: string): unknown {
  if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
  if (path === "model.init" || path === "model.override") return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => {
      const camel = toCamel(key);
      return [camel, camelKeys(inner, path === "" ? camel : `${path}.${camel}`)];
    }),
  );
}

/** Throws a ConfigError that names each key in which the run's settings and its checkpoint's disagree. */
export function checkSameRun(state: TrainerState, config: Config, folder: string): void {
  let stored: Config;
  try {
    stored = parseConfigObject(camelKeys(state.config, "") as Config);
  } catch (error) {
    throw new ConfigError(
      `${folder}: the configuration stored there is not one of this release (${(error as Error).message}); ` +
        "give another output.dir",
      { folder },
      { cause: error },
    );
  }
  const differences = configDifference(stored, config);
  if (differences.length === 0) return;
  const lines = differences.map(
    ({ key, a, b }) => `${key}: the checkpoint has ${showValue(a)}, the run ${showValue(b)}`,
  );
  throw new ConfigError(
    `${folder} is a checkpoint of a run with other settings:\n${lines.join("\n")}\n` +
      "set them back to go on with it, or give another output.dir to start afresh",
    { folder, keys: differences.map(({ key }) => key) },
  );
}
