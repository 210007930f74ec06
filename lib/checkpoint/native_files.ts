// The file functions of the addon as the rest of lib/checkpoint uses them: tensors unwrapped, one class a handle.

import { binding, type NativeReader, type NativeTensor, type NativeWriter } from "../binding.js";

/** Size in bytes and XXH64 (16 hexadecimal digits, as `xxhsum -H64` prints it) of a file. */
export interface FileDigest {
  bytes: number;
  hash: string;
}

/** A contiguous tensor: anything whose `native()` is the addon's handle of one. */
export interface TensorBytes {
  native(): object;
}

export interface OpenedSafetensors {
  handle: NativeReader;
  entries: { name: string; dtype: string; shape: number[]; elements: number; bytes: number }[];
  metadata: Record<string, string>;
}

export async function openSafetensors(file: string): Promise<OpenedSafetensors> {
  const { handle, entries, metadata } = await binding.openSafetensors(file);
  // Without a prototype: "__proto__" is a legal key of the format.
  const record: Record<string, string> = Object.create(null);
  for (const [key, value] of metadata) record[key] = value;
  return { handle, entries, metadata: record };
}

export function closeSafetensors(reader: NativeReader): void {
  binding.closeSafetensors(reader);
}

export async function readSafetensors(
  reader: NativeReader,
  name: string,
  begin: number,
  target: TensorBytes,
): Promise<void> {
  await binding.readSafetensors(reader, name, begin, target.native() as NativeTensor);
}

export async function readSafetensorsBytes(
  reader: NativeReader,
  name: string,
  begin: number,
  count: number,
  dtype: string,
): Promise<ArrayBuffer> {
  return binding.readSafetensorsBytes(reader, name, begin, count, dtype);
}

export async function createSafetensors(
  file: string,
  tensors: readonly { name: string; dtype: string; shape: readonly number[] }[],
  metadata: Readonly<Record<string, string>>,
): Promise<{ handle: NativeWriter; bytes: number }> {
  return binding.createSafetensors(file, tensors, Object.entries(metadata));
}

export async function writeSafetensors(
  writer: NativeWriter,
  name: string,
  source: TensorBytes | ArrayBufferView,
): Promise<void> {
  await binding.writeSafetensors(writer, name, ArrayBuffer.isView(source) ? source : (source.native() as NativeTensor));
}

export async function finishSafetensors(writer: NativeWriter): Promise<FileDigest> {
  return binding.finishSafetensors(writer);
}

export async function abandonSafetensors(writer: NativeWriter): Promise<void> {
  await binding.abandonSafetensors(writer);
}

/** Reads the whole file, off the event loop. Throws IoError. */
export async function hashFile(file: string): Promise<FileDigest> {
  return binding.hashFile(file);
}

/** fsync of a file or a folder. Throws IoError. */
export async function syncPath(name: string): Promise<void> {
  await binding.syncPath(name);
}

/** Swaps two names in one step; false, with nothing changed, where the file system cannot. Throws IoError. */
export async function exchangeNames(a: string, b: string): Promise<boolean> {
  return binding.exchangeNames(a, b);
}
