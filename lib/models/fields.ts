// The fields of a config.json, taken one by one, with one clear error for each that is wrong.

import { ModelError } from "../errors.js";

/** The fields of a config.json as JSON gives them. */
export type ConfigFields = Readonly<Record<string, unknown>>;

export const show = (value: unknown): string => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
};

export interface FieldReaderOptions {
  /** Of the keys in messages. */
  readonly prefix?: string;
  /** Values of fields that are absent. */
  readonly defaults?: ConfigFields;
  /** What the file calls fields, by their usual names. */
  readonly names?: Readonly<Record<string, string>>;
}

/** Takes fields one by one and says what is wrong with one: the file, the key, the value, what is expected. */
export class FieldReader {
  readonly file: string;
  readonly fields: ConfigFields;
  readonly #options: FieldReaderOptions;

  constructor(fields: ConfigFields, file: string, options: FieldReaderOptions = {}) {
    this.fields = fields;
    this.file = file;
    this.#options = options;
  }

  /** What the file calls a field. */
  nameOf(key: string): string {
    const own = this.#options.names?.[key];
    return own !== undefined && (Object.hasOwn(this.fields, own) || !Object.hasOwn(this.fields, key)) ? own : key;
  }

  /** Whether the file has the field. */
  has(key: string): boolean {
    return Object.hasOwn(this.fields, this.nameOf(key));
  }

  /** The field's value, or its default; undefined where it has none. */
  get(key: string): unknown {
    const { defaults = {} } = this.#options;
    if (this.has(key)) return this.fields[this.nameOf(key)];
    return Object.hasOwn(defaults, key) ? defaults[key] : undefined;
  }

  /** The same with other values of some fields. */
  with(fields: ConfigFields): FieldReader {
    return new FieldReader({ ...this.fields, ...fields }, this.file, this.#options);
  }

  /** What an absent field counts as. */
  defaultOf(key: string): unknown {
    return this.#options.defaults?.[key];
  }

  fail(key: string, what: string): never {
    const value = this.get(key);
    const name = (this.#options.prefix ?? "") + this.nameOf(key);
    throw new ModelError(
      value === undefined
        ? `${this.file}: ${name} is missing; ${what}`
        : `${this.file}: ${name} is ${show(value)}; ${what}`,
      { path: this.file, key: name, value },
    );
  }

  /** A whole number of at least `least`. Absent, or null where `nullable`: the default, if there is one. */
  count(key: string, options: { least?: number; default?: number; nullable?: boolean } = {}): number {
    const value = this.#value(key, options.nullable ?? false);
    const least = options.least ?? 1;
    if (value === undefined && options.default !== undefined) return options.default;
    if (!Number.isSafeInteger(value) || (value as number) < least)
      this.fail(key, `expected a whole number of at least ${least}`);
    return value as number;
  }

  /** A finite number above `above` (or from `from` on). */
  number(key: string, options: { above?: number; from?: number; default?: number; nullable?: boolean } = {}): number {
    const value = this.#value(key, options.nullable ?? false);
    if (value === undefined && options.default !== undefined) return options.default;
    const { above, from } = options;
    const good =
      typeof value === "number" &&
      Number.isFinite(value) &&
      (above === undefined || value > above) &&
      (from === undefined || value >= from);
    if (!good) {
      const range = above !== undefined ? ` above ${above}` : from !== undefined ? ` of at least ${from}` : "";
      this.fail(key, `expected a number${range}`);
    }
    return value;
  }

  /** A list of `length` numbers above 0. */
  numbers(key: string, length: number): number[] {
    const value = this.get(key);
    const good = (item: unknown) => typeof item === "number" && Number.isFinite(item) && item > 0;
    if (!Array.isArray(value) || value.length !== length || !value.every(good))
      this.fail(key, `expected a list of ${length} numbers above 0, one for each pair of a head's dims`);
    return value as number[];
  }

  /** As number, null where absent or null. */
  numberOrNull(key: string, options: { above?: number; from?: number } = {}): number | null {
    return this.get(key) === undefined || this.get(key) === null ? null : this.number(key, options);
  }

  /** true or false. */
  flag(key: string, absent: boolean): boolean {
    const value = this.get(key);
    if (value === undefined || value === null) return absent;
    if (typeof value !== "boolean") this.fail(key, "expected true or false");
    return value;
  }

  /** The fields of an object; undefined where it is absent, null or empty. */
  object(key: string): FieldReader | undefined {
    const value = this.get(key);
    if (value === undefined || value === null) return undefined;
    if (typeof value !== "object" || Array.isArray(value)) this.fail(key, "expected an object");
    if (Object.keys(value).length === 0) return undefined;
    return new FieldReader(value as ConfigFields, this.file, { prefix: `${this.#options.prefix ?? ""}${key}.` });
  }

  #value(key: string, nullable: boolean): unknown {
    const value = this.get(key);
    return value === null && nullable ? undefined : value;
  }
}

/** The fields as an object, or a ModelError. */
export function checkFields(raw: unknown, file: string): ConfigFields {
  if (typeof raw !== "object" || raw === null || Array.isArray(raw))
    throw new ModelError(`${file} holds ${show(raw)}; expected an object with the model's fields`, { path: file });
  return raw as ConfigFields;
}
