// Parquet files as rows of JSON: columns of known meaning, one row group at a time, read by hyparquet.

import fs from "node:fs";
import zlib from "node:zlib";
import { decompress as decompressZstd } from "fzstd";
import {
  type AsyncBuffer,
  type Compressors,
  type FileMetaData,
  parquetMetadataAsync,
  parquetReadObjects,
  parquetSchema,
  type SchemaTree,
} from "hyparquet";
import { DataError, IoError, LongseqError } from "../errors.js";
import { expansionError, expansionLimit, refusePointer, type Source } from "./formats.js";
import type { RowBytes } from "./json_list.js";
import { floatText } from "./json_write.js";
import { RANGE_BYTES } from "./lines.js";
import { ROW_COLUMNS, readError, UNUSED_COLUMNS } from "./rows.js";

const exactly = (bytes: Uint8Array, length: number): Uint8Array => {
  if (bytes.length !== length)
    throw new Error(`a page has ${bytes.length} bytes, not the ${length} that its header says`);
  return bytes;
};

/** The codecs beyond those that hyparquet has itself (none and snappy). No page may be larger than its header says. */
const compressors: Compressors = {
  GZIP: (input, length) => exactly(zlib.gunzipSync(input, { maxOutputLength: Math.max(1, length) }), length),
  BROTLI: (input, length) =>
    exactly(zlib.brotliDecompressSync(input, { maxOutputLength: Math.max(1, length) }), length),
  ZSTD: (input, length) => exactly(decompressZstd(input, new Uint8Array(length)), length),
};

const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const parsers = {
  stringFromBytes(bytes: Uint8Array | undefined) {
    try {
      return bytes && strict.decode(bytes);
    } catch {
      throw new Error("a text is not valid UTF-8");
    }
  },
  // As it stands in the file: what it holds is parsed with the row.
  jsonFromBytes: (bytes: Uint8Array | undefined) => bytes && strict.decode(bytes),
};

/** Of the footer's statistics, which may be cut within a character and are not used. */
const lenient = { stringFromBytes: () => undefined, jsonFromBytes: () => undefined };

/** A file by its open handle; each slice exactly as long as asked for. */
function slices(file: string, handle: fs.promises.FileHandle, byteLength: number): AsyncBuffer {
  return {
    byteLength,
    async slice(start, end = byteLength) {
      const bytes = new Uint8Array(end - start);
      for (let done = 0; done < bytes.length; ) {
        const { bytesRead } = await handle.read(bytes, done, Math.min(bytes.length - done, 1 << 30), start + done);
        if (bytesRead === 0)
          throw new IoError(`${file} ended at byte ${start + done}: it changed while it was being read`);
        done += bytesRead;
      }
      return bytes.buffer;
    },
  };
}

/** Writes a value of a column as JSON text. */
type Writer = (value: unknown) => string;

const isAbsent = (value: unknown) => value === null || value === undefined;

/**
 * How values of a column are written. What tells integers from floats is the schema: a float keeps its point, as a
 * template would show it. Fields of a struct that are null are left out, since a table cannot leave them out itself.
 */
function writerOf({ element, children }: SchemaTree): Writer {
  const orNull =
    (write: Writer): Writer =>
    (value) =>
      isAbsent(value) ? "null" : write(value);
  const listOf = (item: Writer) => orNull((value) => `[${Array.from(value as unknown[], item).join(",")}]`);
  const plain = (): Writer => {
    if (children.length > 0) {
      const fields = children.map((child) => [child.element.name, writerOf(child)] as const);
      return orNull((value) => {
        const record = value as Record<string, unknown>;
        const parts = fields.flatMap(([name, write]) =>
          isAbsent(record[name]) ? [] : [`${JSON.stringify(name)}:${write(record[name])}`],
        );
        return `{${parts.join(",")}}`;
      });
    }
    const isFloat = element.type === "DOUBLE" || element.type === "FLOAT" || element.logical_type?.type === "FLOAT16";
    return orNull((value) => {
      if (typeof value === "number") return isFloat ? finite(value) : String(value);
      if (typeof value === "bigint") return value.toString();
      return JSON.stringify(value) ?? "null";
    });
  };
  const repeated = children[0];
  const isList = element.converted_type === "LIST" || element.logical_type?.type === "LIST";
  if (isList && repeated !== undefined) {
    // Three levels: list, repeated group, element. Old writers have two.
    const three =
      repeated.children.length === 1 && repeated.element.name !== "array" && !repeated.element.name.endsWith("_tuple");
    const item = three ? (repeated.children[0] as SchemaTree) : repeated;
    return listOf(
      three ? writerOf(item) : writerOf({ ...item, element: { ...item.element, repetition_type: "OPTIONAL" } }),
    );
  }
  const isMap = element.converted_type === "MAP" || element.logical_type?.type === "MAP";
  const valueOf = repeated?.children[1];
  if (isMap && valueOf !== undefined) {
    const write = writerOf(valueOf);
    return orNull((value) => {
      const parts = Object.entries(value as object).map(([key, inner]) => `${JSON.stringify(key)}:${write(inner)}`);
      return `{${parts.join(",")}}`;
    });
  }
  return element.repetition_type === "REPEATED" ? listOf(plain()) : plain();
}

/** JSON has no other numbers. */
const finite = (value: number): string => (Number.isFinite(value) ? floatText(value) : "null");

/** Whether a column of a row group may hold something: its statistics may say that all are null. */
function mayHold(metadata: FileMetaData, group: number, column: string): boolean {
  return (metadata.row_groups[group]?.columns ?? []).some(({ meta_data: chunk }) => {
    if (chunk?.path_in_schema[0] !== column) return false;
    return chunk.statistics?.null_count === undefined || chunk.statistics.null_count < chunk.num_values;
  });
}

/**
 * The rows of a Parquet file as JSON objects, in order. Only columns of known meaning are read; of columns without
 * effect a group's first row says that they are there. Memory is that of one row group.
 * DataError where the file is damaged or uses what is not read, with the row group and its rows where known.
 */
export async function* parquetRows(source: Source): AsyncGenerator<RowBytes> {
  const { file, columns, expansion } = source;
  let handle: fs.promises.FileHandle;
  try {
    handle = await fs.promises.open(file, "r");
  } catch (error) {
    throw readError(file, error);
  }
  let where = "its footer cannot be read";
  try {
    const { size } = await handle.stat();
    const head = Buffer.alloc(Math.min(64, size));
    await handle.read(head, 0, head.length, 0);
    refusePointer(file, head);
    if (size < 12 || head.toString("latin1", 0, 4) !== "PAR1")
      throw new DataError(`${file} is no Parquet file: it does not begin with PAR1`, { file });
    const buffer = slices(file, handle, size);
    const metadata = await parquetMetadataAsync(buffer, { parsers: lenient, geoparquet: false });
    const unpacked = metadata.row_groups.reduce((sum, group) => sum + Number(group.total_byte_size), 0);
    if (unpacked > expansionLimit(size, expansion)) throw expansionError(file, size, expansion);
    const tree = parquetSchema(metadata);
    const present = new Map(tree.children.map((child) => [child.element.name, child]));
    const ours = new Map(Object.entries(columns ?? {}).map(([name, theirs]) => [theirs, name]));
    const wanted = [...present.keys()].filter((name) => ours.has(name) || ROW_COLUMNS.has(name));
    const silent = [...present.keys()].filter((name) => UNUSED_COLUMNS.has(name) && !wanted.includes(name));
    const writers = wanted.map((name) => [name, writerOf(present.get(name) as SchemaTree)] as const);
    let row = 0;
    for (let group = 0; group < metadata.row_groups.length; group++) {
      const count = Number(metadata.row_groups[group]?.num_rows);
      where = `row group ${group + 1} of ${metadata.row_groups.length} (rows ${row + 1} to ${row + count}) cannot be read`;
      // A read of no columns gives no rows either; a row without any is told by what checks rows.
      const rows: Record<string, unknown>[] =
        wanted.length === 0
          ? Array.from({ length: count }, () => ({}))
          : await parquetReadObjects({
              file: buffer,
              metadata,
              compressors,
              parsers,
              geoparquet: false,
              columns: wanted,
              rowStart: row,
              rowEnd: row + count,
            });
      if (rows.length !== count) throw new Error(`it has ${rows.length} rows`);
      const extra = silent
        .filter((name) => mayHold(metadata, group, name))
        .map((name) => `${JSON.stringify(name)}:true`);
      let texts: Buffer[] = [];
      let ends: number[] = [];
      let bytes = 0;
      let firstRow = row + 1;
      for (const [i, values] of rows.entries()) {
        const parts = writers.flatMap(([name, write]) =>
          isAbsent(values[name]) ? [] : [`${JSON.stringify(name)}:${write(values[name])}`],
        );
        const text = Buffer.from(`{${[...parts, ...(i === 0 ? extra : [])].join(",")}}`);
        texts.push(text);
        bytes += text.length;
        ends.push(bytes);
        if (bytes >= RANGE_BYTES) {
          yield { rows: Buffer.concat(texts), ends, firstRow };
          [texts, ends, bytes, firstRow] = [[], [], 0, row + i + 2];
        }
      }
      if (ends.length > 0) yield { rows: Buffer.concat(texts), ends, firstRow };
      row += count;
    }
  } catch (error) {
    if (error instanceof LongseqError) throw error;
    if ((error as NodeJS.ErrnoException).syscall !== undefined) throw readError(file, error);
    throw new DataError(
      `${file}: ${where}: ${(error as Error).message}; the file is damaged, or written in a way that is not read`,
      { file },
      { cause: error },
    );
  } finally {
    await handle.close();
  }
}
