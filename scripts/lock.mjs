// A lock file between processes of one machine that outlives no crash: it names its holder, and a dead holder's goes.
import { linkSync, readFileSync, renameSync, unlinkSync, writeFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** When process `pid` started, in ticks since boot (tells a reused pid from the holder); "" if it is not alive. */
function startOf(pid) {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return fields[0] === "Z" ? "" : (fields[19] ?? "");
  } catch {
    return "";
  }
}

function read(path) {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return null;
  }
}

/**
 * Takes the lock at `path`, waiting while a living process holds it (`onWait(pid)` is called once a holder).
 * Resolves to a function that gives it back.
 */
export async function takeLock(path, onWait) {
  const mine = `${process.pid} ${startOf(process.pid)}`;
  const draft = `${path}.${process.pid}`;
  let waitedFor = "";
  for (;;) {
    // A link appears whole or not at all: nobody ever reads a half-written lock.
    writeFileSync(draft, mine);
    try {
      linkSync(draft, path);
      unlinkSync(draft);
      return () => {
        if (read(path) === mine) unlinkSync(path);
      };
    } catch (error) {
      unlinkSync(draft);
      if (error.code !== "EEXIST") throw error;
    }
    const holder = read(path);
    if (holder === null) continue;
    const [pid = "", start = ""] = holder.split(" ");
    if (start === "" || startOf(pid) !== start) {
      // Moved aside first, and put back if another process has renewed it in the meantime.
      const stale = `${path}.stale.${process.pid}`;
      try {
        renameSync(path, stale);
        if (read(stale) !== holder) linkSync(stale, path);
        unlinkSync(stale);
      } catch (error) {
        if (error.code !== "ENOENT" && error.code !== "EEXIST") throw error;
      }
      continue;
    }
    if (holder !== waitedFor) {
      waitedFor = holder;
      onWait?.(pid);
    }
    await sleep(200);
  }
}
