// The error classes that longseq throws; each has a stable `code` and a message that says what, where and what to do.

export class LongseqError extends Error {
  /** Stable, upper-case identifier of the kind of failure. */
  readonly code: string;
  /** Machine-readable particulars (sizes by category, file, line, tensor name and the like). */
  declare readonly details: Record<string, unknown>;

  constructor(code: string, message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
    this.code = code;
    // The message says what a person needs: Node does not print these of an error that nobody catches.
    Object.defineProperty(this, "details", { value: details });
  }
}

/** A wrong argument from JavaScript: type, shape, dtype, range, disposed or foreign tensor. */
export class ArgumentError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("INVALID_ARGUMENT", message, details, options);
  }
}

/** A device or host limit would be exceeded; `details` holds bytes by category. */
export class OutOfMemoryError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("OUT_OF_MEMORY", message, details, options);
  }
}

/** Work failed inside a queue: sticky for the device; names op, shapes and rank. */
export class DeviceError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("DEVICE_FAILURE", message, details, options);
  }
}

/** A known feature, dtype, size or platform that this build cannot do. */
export class UnsupportedError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("UNSUPPORTED", message, details, options);
  }
}

/** A usage or configuration mistake: the command line exits 2. */
export class ConfigError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("CONFIG", message, details, options);
  }
}

/** Bad training data; `details` has file and line. */
export class DataError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("DATA", message, details, options);
  }
}

/** A model folder or a config.json that cannot be used. */
export class ModelError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("MODEL", message, details, options);
  }
}

/** A broken, truncated or unsafe file of ours or of safetensors. */
export class FormatError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("FORMAT", message, details, options);
  }
}

/** The operating system refused a read or a write (disk full, read-only, missing). */
export class IoError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("IO", message, details, options);
  }
}

/** Work was given up because a signal or `device.cancel()` asked for it. */
export class CancelledError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("CANCELLED", message, details, options);
  }
}

/** Training cannot go on (too many non-finite steps and the like). */
export class TrainingError extends LongseqError {
  constructor(message: string, details: Record<string, unknown> = {}, options?: ErrorOptions) {
    super("TRAINING", message, details, options);
  }
}
