// A run's state on the disk: DIR/checkpoints/step-N with parameters, optimizer and position, and what it takes to resume.

import { access, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { checkpointPath, type FolderDraft, writeFolder } from "../checkpoint/atomic.js";
import type { FileDigest } from "../checkpoint/native_files.js";
import { type Config, canonicalJson, configDifference, parseConfigObject } from "../config/index.js";
import { showValue, toCamel } from "../config/values.js";
import type { Cursor } from "../data/index.js";
import { ConfigError, FormatError, IoError } from "../errors.js";
import type { Job } from "../parallel/job.js";
import type { MemoryPlan } from "./memory_plan.js";
import { type RunTensors, writeShare, writeWhole } from "./stored_tensors.js";

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

/**
 * Writes DIR/checkpoints/step-N; it appears complete or not at all. All ranks call it: the first writes, and where each
 * holds a share, every one writes its own beside the others'. Returns its path. Throws IoError where the disk is full or
 * read-only, with all earlier checkpoints untouched.
 */
export async function saveCheckpoint(
  folder: string,
  state: TrainerState,
  run: RunTensors & { readonly spread: boolean },
  job: Job,
): Promise<string> {
  const target = checkpointPath(folder, state.step);
  const save = async (fill: (draft: FolderDraft) => Promise<void>): Promise<string> => {
    const written = await writeFolder(
      target,
      async (draft) => {
        await fill(draft);
        await writeFile(await draft.file(STATE_FILE), `${JSON.stringify(state, null, 2)}\n`);
      },
      { info: { step: state.step } },
    );
    return written.path;
  };
  if (!run.spread) return job.leads ? save((draft) => writeWhole(draft, run)) : target;
  // Where one fails all give up, for its reason.
  const all = async <T>(work: () => Promise<T>): Promise<T[]> => {
    const own = await work().then(
      (value) => ({ value }),
      (error: Error) => ({ error: error.message }),
    );
    const found = await job.swap<{ value?: T; error?: string }>(own);
    const rank = found.findIndex(({ error }) => error !== undefined);
    if (rank >= 0) throw new IoError(`cannot save ${target}: rank ${rank}: ${found[rank]?.error}`, { target, rank });
    return found.map(({ value }) => value as T);
  };
  const share = async (path: string): Promise<[string, FileDigest][]> => {
    await all(() => checkSeen(path));
    return all(() => writeShare(path, run, job));
  };
  let path = target;
  let failure: unknown;
  try {
    if (job.leads)
      path = await save(async (draft) => {
        await job.swap(draft.path);
        for (const [name, digest] of await share(draft.path)) draft.note(name, digest);
      });
    else await share((await job.swap<string | null>(null))[0] as string);
  } catch (error) {
    failure = error;
  }
  // All hear of the end, and whether it was a good one: a rank that left before would be lost to the others.
  const [error] = await job.swap(failure === undefined ? null : (failure as Error).message);
  if (failure !== undefined) throw failure;
  if (typeof error === "string") throw new IoError(error, { target });
  return path;
}

/** That rank 0's folder is this rank's too. */
async function checkSeen(path: string): Promise<void> {
  await access(path).catch(() => {
    throw new IoError(
      `${path}, which rank 0 made, is not there: output.dir must lie where all ranks see it (a shared file system)`,
      { path },
    );
  });
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
