// The part of tap that the GPU checks use, for a machine with nothing installed: TAP on stdout, subtests in order, exit
// code 1 if a check failed. In a bundle it lies where the package tap would.
import assert from "node:assert";

/** Whether a value is as asked: parts of objects, regular expressions, classes. */
function matches(value, wanted) {
  if (wanted instanceof RegExp) return wanted.test(String(value));
  if (typeof wanted === "function") return value instanceof wanted;
  if (typeof wanted === "string" && typeof value === "string") return value.includes(wanted);
  if (wanted !== null && typeof wanted === "object") {
    if (value === null || typeof value !== "object") return false;
    return Object.entries(wanted).every(([key, part]) => matches(value[key], part));
  }
  return Object.is(value, wanted);
}

class Test {
  #indent;
  #count = 0;
  #queue = Promise.resolve();
  #teardowns = [];
  failed = 0;

  constructor(name, indent) {
    this.name = name;
    this.#indent = indent;
  }

  #print(text) {
    for (const line of text.split("\n")) process.stdout.write(`${this.#indent}${line}\n`);
  }

  #check(good, message, details) {
    if (!good) this.failed++;
    this.#print(`${good ? "ok" : "not ok"} ${++this.#count} - ${String(message).replace(/\s*\n\s*/g, " ")}`);
    if (!good && details !== undefined) this.#print(`  ${String(details).replace(/\n/g, "\n  ")}`);
    return good;
  }

  ok = (value, message = "is true") => this.#check(Boolean(value), message);
  notOk = (value, message = "is false") => this.#check(!value, message);
  equal = (value, wanted, message = "is equal") =>
    this.#check(Object.is(value, wanted), message, `${String(value)}, expected ${String(wanted)}`);
  not = (value, other, message = "is another") => this.#check(!Object.is(value, other), message);
  pass = (message = "passed") => this.#check(true, message);
  fail = (message = "failed") => this.#check(false, message);
  match = (value, wanted, message = "matches") => this.#check(matches(value, wanted), message, String(value));
  same = (value, wanted, message = "is the same") => {
    try {
      assert.deepEqual(value, wanted);
      return this.#check(true, message);
    } catch (error) {
      return this.#check(false, message, error.message.slice(0, 2000));
    }
  };
  throws = (f, wanted, message) => {
    try {
      f();
    } catch (error) {
      return this.#thrown(error, wanted, message);
    }
    return this.#check(false, "throws", "nothing was thrown");
  };
  rejects = async (promise, wanted, message) => {
    try {
      await (typeof promise === "function" ? promise() : promise);
    } catch (error) {
      return this.#thrown(error, wanted, message);
    }
    return this.#check(false, "rejects", "it did not reject");
  };
  #thrown(error, wanted, message) {
    if (typeof wanted === "string") return this.#check(true, wanted);
    return this.#check(wanted === undefined || matches(error, wanted), message ?? "throws", error?.stack ?? error);
  }
  comment = (text) => this.#print(`# ${text}`);
  /** The suite above limits the time of the whole process. */
  setTimeout = () => {};
  teardown = (f) => {
    this.#teardowns.push(f);
  };

  /** A subtest, run when those before it are over. */
  test = (name, options, f) => {
    const run = async () => {
      const child = new Test(name, `${this.#indent}    `);
      const began = performance.now();
      this.#print(`# Subtest: ${name}`);
      try {
        await (f ?? options)(child);
      } catch (error) {
        child.#check(false, `threw: ${error?.message ?? error}`, error?.stack);
      }
      await child.end();
      if (child.failed) this.failed++;
      const took = (performance.now() - began).toFixed(0);
      this.#print(`${child.failed ? "not ok" : "ok"} ${++this.#count} - ${name} # time=${took}ms`);
      return child.failed === 0;
    };
    this.#queue = this.#queue.then(run);
    return this.#queue;
  };

  /** What is queued comes to its end, then the teardowns, the last first. */
  async end() {
    let before;
    do {
      before = this.#queue;
      await before;
    } while (before !== this.#queue);
    for (const f of this.#teardowns.splice(0).reverse()) {
      try {
        await f();
      } catch (error) {
        this.#check(false, `teardown threw: ${error?.message ?? error}`, error?.stack);
      }
    }
    this.#print(`1..${this.#count}`);
  }
}

process.stdout.write("TAP version 14\n");
const t = new Test("", "");
let over = false;
let ended = false;
// When nothing is left to do but what tests queue.
process.on("beforeExit", async () => {
  if (over) return;
  over = true;
  await t.end();
  ended = true;
  if (t.failed) process.exitCode = 1;
});
// A test that waits for what never comes lets the process end.
process.on("exit", (code) => {
  if (ended || code !== 0) return;
  t.fail("the process ended before its tests did");
  process.exitCode = 1;
});
for (const event of ["uncaughtException", "unhandledRejection"])
  process.on(event, (error) => {
    t.fail(`${event}: ${error?.message ?? error}`);
    console.error(error);
    process.exit(1);
  });
export default t;
export const { test } = t;
