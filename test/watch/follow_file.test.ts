// Files that grow, are cut, replaced, written anew, or are none: what a follower tells of each.

import { execFileSync } from "node:child_process";
import { appendFileSync, renameSync, rmSync, statSync, symlinkSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { FollowedFile } from "../../lib/watch/follow_file.js";

function follow(file: string) {
  const told: string[] = [];
  const followed = new FollowedFile(file, {
    line: (bytes, number) => told.push(`${number} ${bytes.toString()}`),
    tooLong: (number) => told.push(`${number} too long`),
    restart: () => told.push("restart"),
  });
  /** All that there is to read. */
  const look = async () => {
    told.length = 0;
    let found = await followed.look();
    while (found.there && found.more) found = await followed.look();
    return { found, told: [...told] };
  };
  return { followed, look };
}

t.test("lines as they come, each once; half a line waits", async (t) => {
  const file = join(t.testdir({}), "lines");
  const { look, followed } = follow(file);
  t.same((await look()).found, { there: false, problem: null });
  writeFileSync(file, "");
  t.match(await look(), { found: { there: true, changed: false }, told: [] });
  appendFileSync(file, "one\ntw");
  t.same((await look()).told, ["1 one"]);
  t.same((await look()).told, []);
  appendFileSync(file, "o\nthree\n");
  t.same((await look()).told, ["2 two", "3 three"]);
  t.equal(followed.offset, statSync(file).size);
});

t.test("cut, cut and grown again, replaced, gone", async (t) => {
  const file = join(t.testdir({ lines: "one\ntwo\nthree\n" }), "lines");
  const { look } = follow(file);
  await look();
  truncateSync(file, 8);
  t.same((await look()).told, ["restart", "1 one", "2 two"]);
  truncateSync(file, 4);
  appendFileSync(file, "another\nlonger than before\n");
  t.same((await look()).told, ["restart", "1 one", "2 another", "3 longer than before"], "grown beyond where it was");
  writeFileSync(`${file}.new`, "one\nanother\nlonger than before\nand more\n");
  renameSync(`${file}.new`, file);
  t.equal((await look()).told[0], "restart", "another file under the same name");
  rmSync(file);
  t.same((await look()).found, { there: false, problem: null });
});

t.test("long lines are left out and what follows is not", async (t) => {
  const file = join(t.testdir({}), "lines");
  writeFileSync(file, `one\n${"x".repeat(2.5 * 2 ** 20)}\nthree\n`);
  const { look } = follow(file);
  t.same((await look()).told, ["1 one", "2 too long", "3 three"]);
  appendFileSync(file, "y".repeat(3 * 2 ** 20));
  t.same((await look()).told, ["4 too long"]);
  appendFileSync(file, "y\nfive\n");
  t.same((await look()).told, ["5 five"]);
});

t.test("many chunks, and what lies beyond 4 GiB", async (t) => {
  const file = join(t.testdir({}), "lines");
  const count = 200_000;
  writeFileSync(file, Array.from({ length: count }, (_, i) => `line ${i + 1}\n`).join(""));
  const { look } = follow(file);
  const { told } = await look();
  t.equal(told.length, count);
  t.equal(told.at(-1), `${count} line ${count}`);
  // A file of holes: one line of zeros that is too long, read in chunks, and one behind it.
  const sparse = `${file}.sparse`;
  writeFileSync(sparse, "");
  truncateSync(sparse, 4 * 2 ** 30 + 10);
  appendFileSync(sparse, "\nbeyond\n");
  t.same((await follow(sparse).look()).told, ["1 too long", "2 beyond"]);
});

t.test("what is no file of its own is refused, and a pipe is not waited for", async (t) => {
  const folder = t.testdir({ elsewhere: "secret\n", inner: {} });
  const file = join(folder, "inner/link");
  symlinkSync(join(folder, "elsewhere"), file);
  t.match((await follow(file).look()).found, { there: false, problem: /symbolic link/ });
  execFileSync("mkfifo", [join(folder, "pipe")]);
  t.match((await follow(join(folder, "pipe")).look()).found, { there: false, problem: /no regular file/ });
  t.match((await follow(folder).look()).found, { there: false, problem: /no regular file/ });
});
