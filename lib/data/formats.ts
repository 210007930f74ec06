// Which format a data file has: by its name, or as its entry says; and what is refused by name or by its first bytes.

import path from "node:path";
import { ConfigError, DataError } from "../errors.js";

/** How the bytes of a file become rows. */
export const FILE_TYPES = ["jsonl", "json", "parquet", "text", "tokens"] as const;
export type FileType = (typeof FILE_TYPES)[number];
/** What must be undone before. */
export type Compression = "none" | "gzip" | "zstd";
/** How the ids of a token file are stored, little endian. */
export const ID_TYPES = ["uint16", "uint32"] as const;
export type IdType = (typeof ID_TYPES)[number];

/** A file of data.train or data.eval, or a folder of texts, and how it is read. */
export interface Source {
  file: string;
  type: FileType;
  /** Whether its entry says the type. */
  told: boolean;
  compression: Compression;
  /** Whether `file` is a folder, whose texts are documents. */
  folder: boolean;
  /** Of a token file; null: its header says it. */
  dtype: IdType | null;
  /** The id that ends a document of a token file. */
  eos: number | null;
  /** The id that begins one. */
  bos: number | null;
  /** The file's names of columns, by ours. */
  columns: Readonly<Record<string, string>> | null;
  /** How many times its compressed size a file may have; null: 200 times, and always 1 GiB. */
  expansion: number | null;
  /** The entry of data.train that names it. */
  entry: number;
  /** What is to be said of it; null: nothing. */
  note: string | null;
}

/** Texts by extension: documents and source code in languages that people write by hand. */
const TEXT_EXTENSIONS = new Set(
  (
    "txt text md markdown rst tex org adoc " +
    "py pyi pyx ipy js mjs cjs jsx ts mts cts tsx vue svelte java kt kts scala groovy clj cljs go rs c h cc hh cpp hpp cxx hxx " +
    "cu cuh m mm cs fs fsx vb swift rb erb php pl pm lua r jl dart ex exs erl hrl hs lhs ml mli elm nim zig d v sv vhd vhdl " +
    "asm s f f90 f95 f03 for pas ada adb ads cob lisp el scm rkt sol move cairo " +
    "sh bash zsh fish ps1 bat cmd sql graphql proto thrift html htm css scss sass less yaml yml toml ini cfg conf cmake mk gradle tf nix"
  ).split(" "),
);
/** Texts whose names have no extension. */
const TEXT_NAMES = new Set(["makefile", "dockerfile", "readme", "rakefile", "gemfile", "jenkinsfile"]);

/** Whether a file is taken for a text, by its name. */
export function isTextName(file: string): boolean {
  const name = path.basename(file).toLowerCase();
  const dot = name.lastIndexOf(".");
  return dot < 0 ? TEXT_NAMES.has(name) : TEXT_EXTENSIONS.has(name.slice(dot + 1));
}

/** Whether a file holds rows or ids, by its name. */
export const isRowsName = (file: string): boolean =>
  /\.(jsonl|ndjson|parquet|u16|u32)(\.(gz|zst))?$/i.test(file) || /\.json\.(gz|zst)$/i.test(file);

const REFUSED_SUFFIXES: [RegExp, string][] = [
  [/\.(tgz|tar|tar\.\w+|zip|7z)$/i, "is an archive; unpack it first"],
  [/\.(bz2|xz|lz4)$/i, "is compressed in a way that is not read; unpack it, or pack it with gzip or zstd"],
  [/\.(arrow|feather)$/i, "is an Arrow file; write it as .parquet or .jsonl first"],
];

const MAGIC_BYTES: [number[], string][] = [
  [[0x1f, 0x8b], "is gzip data; name it .jsonl.gz, or unpack it first (gunzip)"],
  [[0x28, 0xb5, 0x2f, 0xfd], "is zstd data; name it .jsonl.zst, or unpack it first (unzstd)"],
  [[0x42, 0x5a, 0x68], "is bzip2 data; unpack it first (bunzip2)"],
  [[0xfd, 0x37, 0x7a, 0x58, 0x5a], "is xz data; unpack it first (unxz)"],
  [[0x50, 0x4b, 0x03, 0x04], "is a zip archive; unpack it first"],
  [[0x50, 0x41, 0x52, 0x31], "is a Parquet file; name it .parquet"],
  [[0x41, 0x52, 0x52, 0x4f, 0x57, 0x31], "is an Arrow file; write it as .parquet or .jsonl first"],
  [[...Buffer.from("version https://git-lfs.")], "is a Git LFS pointer, not the file itself; run `git lfs pull`"],
  [[0xff, 0xfe], "is UTF-16 (little endian byte order mark); convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"],
  [[0xfe, 0xff], "is UTF-16 (big endian byte order mark); convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"],
];

/** Refuses what cannot be rows or text, from the file's first bytes. */
export function refuseForeignBytes(file: string, head: Uint8Array): void {
  for (const [magic, what] of MAGIC_BYTES) {
    if (magic.every((byte, i) => head[i] === byte)) throw new DataError(`${file} ${what}`, { file });
  }
}

/** A Git LFS pointer, whatever the file is named. */
export function refusePointer(file: string, head: Uint8Array): void {
  if (Buffer.from(head.subarray(0, 24)).toString("latin1") === "version https://git-lfs.")
    refuseForeignBytes(file, head);
}

/**
 * The format of a file. `type`: what its entry says; null: by its name, where an unknown one is JSONL.
 * Throws DataError for formats that are not read, ConfigError where the entry's type and the name cannot both be.
 */
export function formatOf(
  file: string,
  type: FileType | null,
): { type: FileType; compression: Compression; dtype: IdType | null } {
  for (const [suffix, what] of REFUSED_SUFFIXES) {
    if (suffix.test(file)) throw new DataError(`${file} ${what}`, { file });
  }
  const packed = /\.(gz|zst)$/i.exec(file)?.[1]?.toLowerCase();
  const compression = packed === undefined ? "none" : packed === "gz" ? "gzip" : "zstd";
  const inner = packed === undefined ? file : file.slice(0, -packed.length - 1);
  const extension = path.extname(inner).slice(1).toLowerCase();
  const named: FileType =
    extension === "json"
      ? "json"
      : extension === "parquet"
        ? "parquet"
        : ["bin", "u16", "u32"].includes(extension)
          ? "tokens"
          : isTextName(inner)
            ? "text"
            : "jsonl";
  const chosen = type ?? named;
  if (compression !== "none" && chosen !== "jsonl" && chosen !== "json") {
    const message = `${file} is compressed, which is read of .jsonl and .json alone; unpack it first`;
    throw new DataError(message, { file });
  }
  const dtype = extension === "u16" ? "uint16" : extension === "u32" ? "uint32" : null;
  return { type: chosen, compression, dtype: chosen === "tokens" ? dtype : null };
}

/** Text packs at 3 to 10 to one, logs and tables at up to some 100. */
const EXPANSION = 200;

/** The most output that a compressed file of so many bytes may give: what its entry says, or what is usual. */
export const expansionLimit = (bytes: number, expansion: number | null): number =>
  expansion === null ? Math.max(2 ** 30, bytes * EXPANSION) : bytes * expansion;

/** What is said where that is not enough. */
export function expansionError(file: string, bytes: number, expansion: number | null): ConfigError {
  const limit = expansionLimit(bytes, expansion);
  const times = Math.ceil(limit / Math.max(1, bytes));
  return new ConfigError(
    `${file} unpacks to more than ${Math.floor(limit)} bytes, ${times} times its size; if it is meant to, allow more in its ` +
      `entry: {path: ..., expansion: ${10 * times}}`,
    { file, limit, expansion },
  );
}
