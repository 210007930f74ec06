// TensorBoard's event files: records of tensorflow.Event, each framed by its length and checksums (TFRecord).
//
// Formats: tensorflow/core/util/event.proto, framework/summary.proto and tensor.proto; lib/io/record_writer.h.

import { closeSync, openSync, writeSync } from "node:fs";
import { hostname } from "node:os";
import { join } from "node:path";
import { toSnake } from "../config/values.js";
import { IoError } from "../errors.js";
import { makeFolders } from "../folders.js";
import type { RunItem } from "./events.js";
import type { Tracker } from "./tracker.js";

/** Castagnoli's polynomial, bits reversed. */
const POLYNOMIAL = 0x82f63b78;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  return crc >>> 0;
});

/** CRC-32C (RFC 3720). */
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = (crc >>> 8) ^ (CRC_TABLE[(crc ^ byte) & 0xff] as number);
  return (crc ^ 0xffffffff) >>> 0;
}

/** A checksum as records have it: checksums of what holds checksums are no good. */
const masked = (bytes: Uint8Array): number => {
  const crc = crc32c(bytes);
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
};

function framed(data: Buffer): Buffer {
  const frame = Buffer.alloc(12 + data.length + 4);
  frame.writeBigUInt64LE(BigInt(data.length), 0);
  frame.writeUInt32LE(masked(frame.subarray(0, 8)), 8);
  data.copy(frame, 12);
  frame.writeUInt32LE(masked(data), 12 + data.length);
  return frame;
}

/** Fields of a protocol buffer, by number. */
const key = (field: number, wire: 0 | 1 | 2 | 5): Buffer => varint((field << 3) | wire);

function varint(value: number): Buffer {
  const bytes: number[] = [];
  let rest = BigInt(value);
  while (rest >= 128n) {
    bytes.push(Number(rest & 127n) | 128);
    rest >>= 7n;
  }
  return Buffer.from([...bytes, Number(rest)]);
}

const integer = (field: number, value: number): Buffer => Buffer.concat([key(field, 0), varint(value)]);
const bytes = (field: number, value: Buffer | string): Buffer => {
  const data = typeof value === "string" ? Buffer.from(value, "utf8") : value;
  return Buffer.concat([key(field, 2), varint(data.length), data]);
};
const float = (field: number, value: number): Buffer => {
  const data = Buffer.alloc(4);
  data.writeFloatLE(value);
  return Buffer.concat([key(field, 5), data]);
};
const double = (field: number, value: number): Buffer => {
  const data = Buffer.alloc(8);
  data.writeDoubleLE(value);
  return Buffer.concat([key(field, 1), data]);
};

/** What an event says, beside when. */
type What = { version: string } | { start: true } | { values: readonly Buffer[] };

/** A tensorflow.Event. */
function event(seconds: number, step: number, what: What): Buffer {
  const head = [double(1, seconds), ...(step === 0 ? [] : [integer(2, step)])];
  if ("version" in what) return Buffer.concat([...head, bytes(3, what.version)]);
  // SessionLog START: what was written of this step and later ones no longer counts.
  if ("start" in what) return Buffer.concat([...head, bytes(7, integer(1, 1))]);
  return Buffer.concat([...head, bytes(5, Buffer.concat(what.values.map((value) => bytes(1, value))))]);
}

/** A Summary.Value of one number. */
const scalar = (tag: string, value: number): Buffer => Buffer.concat([bytes(1, tag), float(2, value)]);

/** A Summary.Value of a text, for the text plugin. */
function text(tag: string, value: string): Buffer {
  const plugin = bytes(1, bytes(1, "text"));
  const shape = bytes(2, integer(1, 1));
  const tensor = Buffer.concat([integer(1, 7), bytes(2, shape), bytes(8, value)]);
  return Buffer.concat([bytes(1, tag), bytes(8, tensor), bytes(9, plugin)]);
}

/** Which scalars a step has, by the group that TensorBoard shows them in. */
const groups: Readonly<Record<string, string>> = {
  loss: "train",
  gradNorm: "train",
  learningRate: "train",
  epoch: "train",
  auxLoss: "train",
  validTokens: "train",
  skipped: "train",
  seconds: "speed",
  tokensPerSecond: "speed",
  modelTflops: "speed",
  hardwareTflops: "speed",
  mfu: "speed",
  devicePeakBytes: "memory",
  deviceLiveBytes: "memory",
  hostPeakBytes: "memory",
  rssPeakBytes: "memory",
};

/** Tags and numbers of an item; what is no finite number is left out. */
export function scalarsOf(item: RunItem): [tag: string, value: number][] {
  const found: [string, unknown][] = [];
  if (item.event === undefined) {
    for (const [name, group] of Object.entries(groups))
      found.push([`${group}/${toSnake(name)}`, (item as unknown as Record<string, unknown>)[name]]);
    for (const [name, spread] of Object.entries(item.ranks ?? {}))
      found.push([`ranks/${toSnake(name)}_min`, spread.min], [`ranks/${toSnake(name)}_max`, spread.max]);
    if (item.tokensPerExpert)
      found.push(
        ["train/tokens_per_expert_max", item.tokensPerExpert.max],
        ["train/tokens_per_expert_mean", item.tokensPerExpert.mean],
      );
  } else if (item.event === "eval") {
    for (const name of ["loss", "perplexity", "seconds"]) found.push([`eval/${name}`, item[name]]);
  }
  return found.flatMap(([tag, value]): [string, number][] => {
    const number = typeof value === "boolean" ? Number(value) : value;
    return typeof number === "number" && Number.isFinite(number) ? [[tag, number]] : [];
  });
}

export interface TensorBoardOptions {
  /** Steps that were finished before this run. */
  startStep: number;
  /** Shown as the text `config`. */
  config: string;
  /** Seconds since 1970. Default: the clock's. */
  now?: () => number;
}

/** Writes DIR/tensorboard/events.out.tfevents.*: a file a run, which takes back what a resume takes back. */
export class TensorBoardTracker implements Tracker {
  readonly name = "tensorboard";
  readonly file: string;
  readonly #descriptor: number;
  readonly #now: () => number;
  #step: number;
  #open = true;

  /** Throws IoError. */
  constructor(dir: string, { startStep, config, now = () => Date.now() / 1000 }: TensorBoardOptions) {
    const folder = join(dir, "tensorboard");
    this.#now = now;
    this.#step = startStep;
    const begun = now();
    // As TensorFlow names them: what sorts later is read later.
    const stamp = Math.floor(begun * 1000);
    this.file = join(folder, `events.out.tfevents.${stamp}.${hostname()}.${process.pid}`);
    try {
      makeFolders(folder);
      this.#descriptor = openSync(this.file, "a");
    } catch (error) {
      throw new IoError(
        `${this.file}: cannot be opened: ${(error as Error).message}`,
        { file: this.file },
        { cause: error },
      );
    }
    this.#append(event(begun, 0, { version: "brain.Event:2" }));
    if (startStep > 0) this.#append(event(begun, startStep + 1, { start: true }));
    this.#append(event(begun, startStep, { values: [text("config", `\`\`\`yaml\n${config}\n\`\`\``)] }));
  }

  #append(data: Buffer): void {
    writeSync(this.#descriptor, framed(data));
  }

  write(item: RunItem): void {
    if (item.event === undefined) this.#step = item.step;
    if (item.event === "warning") {
      this.#append(event(this.#now(), this.#step, { values: [text("warnings", item.message)] }));
      return;
    }
    const values = scalarsOf(item).map(([tag, value]) => scalar(tag, value));
    const step = item.event === "eval" ? item.step : this.#step;
    if (values.length > 0) this.#append(event(this.#now(), step, { values }));
  }

  async close(): Promise<void> {
    if (this.#open) closeSync(this.#descriptor);
    this.#open = false;
  }
}
