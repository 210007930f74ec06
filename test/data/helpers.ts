// Shared by the data tests: files in a temporary folder, and the error that a promise or a function ends with.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import type { Test } from "tap";
import { type DataOptions, type Dataset, openData } from "../../lib/data/index.js";

/** Where the golden tokenizers lie. */
export const GOLDEN = new URL("../golden/data/", import.meta.url).pathname;

/** An empty folder that goes with the test; unlike `t.testdir()` another one each time. */
export function fresh(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), "longseq-data-"));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

export function write(directory: string, name: string, content: string | Uint8Array | object[]): string {
  const file = path.join(directory, name);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  const isRows = Array.isArray(content);
  fs.writeFileSync(file, isRows ? content.map((row) => `${JSON.stringify(row)}\n`).join("") : (content as string));
  return file;
}

/** Opens data with small defaults: no packing, no shuffle, sequences of up to 64 tokens. */
export function open(directory: string, options: Partial<DataOptions>): Promise<Dataset> {
  return openData({
    files: [path.join(directory, "*.jsonl")],
    sequenceLength: 64,
    packing: false,
    shuffle: false,
    cacheDir: path.join(directory, "cache"),
    ...options,
  });
}

/** The error that opening a file of these bytes ends with. */
export async function openingError(
  directory: string,
  content: string | Uint8Array | object[],
  options: Partial<DataOptions> = {},
): Promise<Error> {
  const file = write(directory, "rows.jsonl", content);
  try {
    await open(directory, { files: [file], tokenizer: "bytes", vocabSize: 259, ...options });
  } catch (error) {
    return error as Error;
  }
  throw new Error("opening the data succeeded");
}

export async function rejection(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("it succeeded");
}
