// Following a file of lines: what was added since the last look, and whether the file was cut or replaced meanwhile.

import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";

/** Read at once. */
const CHUNK = 4 << 20;
/** A longer line is left out: no run writes one, and it would have to be held whole. */
const LONGEST_LINE = 1 << 20;
/** So many bytes before the place reached must still be the same, or the file is another one. */
const TAIL = 256;

export type Look =
  /** `changed`: something was read, or the file began anew. `more`: a chunk was read and there is more behind it. */
  | { there: true; changed: boolean; more: boolean; size: number; mtime: number }
  /** null: there is no such file. */
  | { there: false; problem: string | null };

export interface LineListener {
  /** A whole line without its end; `number` counts from 1. */
  line(bytes: Buffer, number: number): void;
  tooLong(number: number): void;
  /** What was told before is no more: the file was cut, replaced, or written anew. */
  restart(): void;
}

/**
 * Reads a file that grows by lines, a chunk a look, never the same byte twice unless the file was cut or replaced. A
 * last line without its end waits for the rest. Symbolic links are refused, and whatever is no regular file.
 */
export class FollowedFile {
  readonly #path: string;
  readonly #listener: LineListener;
  /** Just behind the last whole line. */
  #offset = 0;
  #lines = 0;
  /** The bytes before `#offset`. */
  #tail: Buffer = Buffer.alloc(0);
  /** Device, inode, size and time when it was last read to its end. */
  #seen = "";
  #file = "";
  /** In the middle of a line that is too long. */
  #skipping = false;

  constructor(path: string, listener: LineListener) {
    this.#path = path;
    this.#listener = listener;
  }

  /** Bytes behind which nothing was read yet. */
  get offset(): number {
    return this.#offset;
  }

  async look(): Promise<Look> {
    let handle: FileHandle | undefined;
    try {
      // Not to wait for the other end of a pipe.
      handle = await open(this.#path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
      return await this.#read(handle);
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code ?? String(error);
      if (code === "ENOENT" || code === "ENOTDIR") return { there: false, problem: null };
      if (code === "ELOOP") return { there: false, problem: "is a symbolic link, which is not followed" };
      return { there: false, problem: `cannot be read (${code})` };
    } finally {
      await handle?.close().catch(() => {});
    }
  }

  async #read(handle: FileHandle): Promise<Look> {
    const stat = await handle.stat({ bigint: true });
    if (!stat.isFile()) return { there: false, problem: "is no regular file" };
    const size = Number(stat.size);
    const mtime = Number(stat.mtimeMs);
    const file = `${stat.dev}:${stat.ino}`;
    const seen = `${file}:${stat.size}:${stat.mtimeNs}`;
    if (seen === this.#seen) return { there: true, changed: false, more: false, size, mtime };
    let changed = false;
    if ((this.#file !== "" && file !== this.#file) || size < this.#offset) {
      this.#restart();
      changed = true;
    }
    this.#file = file;
    const from = this.#offset - this.#tail.length;
    const bytes = Buffer.allocUnsafe(Math.min(CHUNK, size - this.#offset) + this.#tail.length);
    let read = 0;
    while (read < bytes.length) {
      const { bytesRead } = await handle.read(bytes, read, bytes.length - read, from + read);
      // Cut while it was read: the next look sees that.
      if (bytesRead === 0) break;
      read += bytesRead;
    }
    if (!bytes.subarray(0, this.#tail.length).equals(this.#tail)) {
      this.#restart();
      return { there: true, changed: true, more: true, size, mtime };
    }
    const added = bytes.subarray(this.#tail.length, read);
    const end = this.#take(added);
    if (end > 0) {
      this.#offset += end;
      this.#tail = Buffer.from(bytes.subarray(0, this.#tail.length + end).subarray(-TAIL));
      changed = true;
    }
    const more = this.#offset < size && end > 0 && added.length === CHUNK;
    if (!more) this.#seen = seen;
    return { there: true, changed, more, size, mtime };
  }

  /** Tells the whole lines; returns where what is left begins. */
  #take(bytes: Buffer): number {
    let from = 0;
    for (let end = bytes.indexOf(10); end >= 0; end = bytes.indexOf(10, from)) {
      this.#lines++;
      if (this.#skipping || end - from > LONGEST_LINE) {
        if (!this.#skipping) this.#listener.tooLong(this.#lines);
        this.#skipping = false;
      } else this.#listener.line(bytes.subarray(from, end), this.#lines);
      from = end + 1;
    }
    if (bytes.length - from < LONGEST_LINE) return this.#skipping ? bytes.length : from;
    if (!this.#skipping) this.#listener.tooLong(this.#lines + 1);
    this.#skipping = true;
    return bytes.length;
  }

  #restart(): void {
    this.#offset = 0;
    this.#lines = 0;
    this.#tail = Buffer.alloc(0);
    this.#seen = "";
    this.#skipping = false;
    this.#listener.restart();
  }
}
