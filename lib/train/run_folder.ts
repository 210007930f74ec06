// The folder of a run: made, locked, and looked through for the checkpoint to go on from.

import { openSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { binding } from "../binding.js";
import { cleanStale, newestValid, writeFileDurably } from "../checkpoint/atomic.js";
import { ConfigError, IoError } from "../errors.js";
import { makeFolders } from "../folders.js";
import { RANKS } from "../parallel/rank_log.js";
import type { Session } from "./session.js";
import { checkSameRun, readState, type TrainerState } from "./state.js";

/** A checkpoint that a run goes on from. */
export interface Resumed {
  path: string;
  state: TrainerState;
}

/** Opens the folder, by rank 0. Returns the checkpoint to go on from; undefined to start afresh. */
export async function openRunFolder(session: Session): Promise<Resumed | undefined> {
  let own: Resumed | undefined;
  const path = await session.job.fromLeader(async () => {
    own = await lockRunFolder(session);
    return own?.path ?? null;
  });
  if (path === null || session.job.leads) return own;
  const state = await readState(path);
  session.saved = state.step;
  return { path, state };
}

/** Makes and locks the folder, and looks for the checkpoint to go on from. */
async function lockRunFolder(session: Session): Promise<Resumed | undefined> {
  const { config, folder, checkpoints } = session;
  let names: string[] = [];
  try {
    // The launcher has put the other ranks' logs there already.
    names = readdirSync(folder).filter((name) => name !== RANKS || session.job.world === 1);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "ENOTDIR") throw new ConfigError(`output.dir: ${folder} is a file; give the path of a folder`);
    if (code !== "ENOENT") throw new IoError(`output.dir: cannot look into ${folder}: ${(error as Error).message}`);
  }
  if (config.output.resume === "never" && names.length > 0)
    throw new ConfigError(
      `output.dir: ${folder} is not empty and output.resume is never; give another folder, or set output.resume to auto`,
      { folder },
    );
  try {
    makeFolders(folder);
  } catch (error) {
    throw new IoError(
      `output.dir: cannot make ${folder}: ${(error as Error).message}`,
      { path: folder, errno: (error as NodeJS.ErrnoException).code },
      { cause: error },
    );
  }
  session.lock = openSync(folder, "r");
  if (!binding.takeLock(session.lock))
    throw new ConfigError(
      `output.dir: another run is training into ${folder}; wait for its end, stop it, or give another folder`,
      { folder },
    );
  await cleanStale(folder);
  await cleanStale(checkpoints);
  const { checkpoint, passedOver } = await newestValid(checkpoints);
  for (const { path, reason } of passedOver)
    session.warn(`${path} cannot be used and is passed over: ${reason}`, { path });
  const first = passedOver[0];
  if (checkpoint === undefined && first !== undefined)
    throw new IoError(
      `${checkpoints}: none of its ${passedOver.length} checkpoints can be used (${first.path}: ${first.reason}); ` +
        "restore one of them, move the folder away, or give another output.dir to start afresh",
      { path: checkpoints },
    );
  if (checkpoint === undefined) return undefined;
  const state = await readState(checkpoint.path);
  checkSameRun(state, config, checkpoint.path);
  session.saved = checkpoint.step;
  return { path: checkpoint.path, state };
}

const finishedFile = (folder: string): string => join(folder, "finished.json");

/** Notes that the model of this step is in DIR/model. */
export const markExported = (folder: string, step: number): Promise<void> =>
  writeFileDurably(finishedFile(folder), `${JSON.stringify({ step })}\n`);

/** The step whose model is in DIR/model; undefined where there is none. */
export function exportedStep(folder: string): number | undefined {
  try {
    const text = readFileSync(finishedFile(folder), "utf8");
    readdirSync(join(folder, "model"));
    return (JSON.parse(text) as { step: number }).step;
  } catch {
    return undefined;
  }
}
