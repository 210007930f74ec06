// A JSON list of rows as a stream: where its elements begin and end, without parsing them.

import type { DataError } from "../errors.js";
import { MAX_LINE_BYTES, RANGE_BYTES } from "./lines.js";
import { rowError } from "./rows.js";

/** Rows that follow each other, each the bytes ends[i-1]..ends[i]-1; the first is row `firstRow` (from 1). */
export interface RowBytes {
  rows: Uint8Array;
  ends: number[];
  firstRow: number;
}

const isSpace = (byte: number) => byte === 32 || byte === 10 || byte === 13 || byte === 9;
const [QUOTE, BACKSLASH, COMMA, OPEN, CLOSE] = [...'"\\,[]'].map((c) => c.charCodeAt(0)) as [
  number,
  number,
  number,
  number,
  number,
];
const BRACES = [..."{}"].map((c) => c.charCodeAt(0)) as [number, number];

/**
 * The elements of the one list that a file holds, in groups of about RANGE_BYTES. What stands within an element is not
 * looked at but for where it ends. DataError, with the row before which the fault lies, where it is no list.
 */
export async function* elementsOf(file: string, chunks: AsyncIterable<Uint8Array>): AsyncGenerator<RowBytes> {
  /** Before the list; before its first element, or one that must come; inside one; behind the list. */
  let state = "before" as "before" | "first" | "element" | "inside" | "after";
  let row = 1;
  let firstRow = 1;
  let depth = 0;
  let text = false;
  let escaped = false;
  /** The element that has begun, without what is in the present chunk. */
  let element: Uint8Array[] = [];
  let elementBytes = 0;
  let group: Uint8Array[] = [];
  let ends: number[] = [];
  let size = 0;
  const fail = (what: string): DataError => rowError(file, row, `the file is no JSON list of rows: ${what}`);
  for await (const chunk of chunks) {
    let begin = 0;
    const finish = (end: number) => {
      element.push(chunk.subarray(begin, end));
      elementBytes += end - begin;
      group.push(...element);
      size += elementBytes;
      ends.push(size);
      element = [];
      elementBytes = 0;
      row++;
    };
    for (let i = 0; i < chunk.length; i++) {
      const byte = chunk[i] as number;
      if (state === "inside") {
        if (text) {
          if (escaped) escaped = false;
          else if (byte === BACKSLASH) escaped = true;
          else if (byte === QUOTE) text = false;
        } else if (byte === QUOTE) text = true;
        else if (byte === OPEN || byte === BRACES[0]) depth++;
        else if (depth > 0 && (byte === CLOSE || byte === BRACES[1])) depth--;
        else if (depth === 0 && (byte === COMMA || byte === CLOSE)) {
          finish(i);
          state = byte === COMMA ? "element" : "after";
        }
        continue;
      }
      if (isSpace(byte)) continue;
      if (state === "before") {
        // A byte order mark.
        if (i < 3 && [0xef, 0xbb, 0xbf][i] === byte) continue;
        if (byte !== OPEN) throw fail(`it begins with ${JSON.stringify(String.fromCharCode(byte))}`);
        state = "first";
      } else if (state === "after") throw fail("something stands behind the list");
      else if (byte === CLOSE && state === "first") state = "after";
      else if (byte === COMMA || byte === CLOSE) throw fail("a row is missing between commas");
      else {
        state = "inside";
        begin = i;
        depth = byte === OPEN || byte === BRACES[0] ? 1 : 0;
        text = byte === QUOTE;
        escaped = false;
      }
    }
    if (state === "inside") {
      element.push(chunk.subarray(begin));
      elementBytes += chunk.length - begin;
      if (elementBytes > MAX_LINE_BYTES)
        throw rowError(file, row, "the row is longer than 512 MiB; split it into several");
    }
    if (size >= RANGE_BYTES) {
      yield { rows: Buffer.concat(group), ends, firstRow };
      firstRow = row;
      group = [];
      ends = [];
      size = 0;
    }
  }
  if (state !== "after") throw fail("it ends before the list does");
  if (ends.length > 0) yield { rows: Buffer.concat(group), ends, firstRow };
}
