// Scopes: memory lifetime without the garbage collector. What a scope's function makes and does not return is freed.
import { AsyncLocalStorage } from "node:async_hooks";
import { ArgumentError } from "../errors.js";

/** What scopes keep track of: tensors, and graph nodes with the tensors they saved. */
export interface Scoped {
  /** Frees it; a second call does nothing. */
  dispose(): void;
  /** The scope that will free it. Scopes alone write this. */
  scope: Scope | undefined;
}

/** Collects what was made while it was the innermost scope. */
export class Scope {
  #made = new Set<Scoped>();

  add(item: Scoped): void {
    this.#made.add(item);
    item.scope = this;
  }

  delete(item: Scoped): void {
    this.#made.delete(item);
    item.scope = undefined;
  }

  /** Frees all but `kept`, which pass to `outer` (or to nobody). */
  close(kept: Set<Scoped>, outer: Scope | undefined): void {
    const made = this.#made;
    this.#made = new Set();
    for (const item of made) {
      item.scope = undefined;
      if (!kept.has(item)) item.dispose();
      else outer?.add(item);
    }
  }
}

const stack: Scope[] = [];
const asynchronous = new AsyncLocalStorage<Scope>();

/** For callers from JavaScript. Errors: ArgumentError. */
export function requireFunction(name: string, fn: unknown): void {
  if (typeof fn !== "function") throw new ArgumentError(`${name}: expected a function, got ${typeof fn}`);
}

/** The innermost scope, if any. */
export const currentScope = (): Scope | undefined => stack[stack.length - 1] ?? asynchronous.getStore();

let untrackedDepth = 0;

/** What `fn` makes belongs to no scope (parameters, gradients, optimizer states). */
export function untracked<T>(fn: () => T): T {
  untrackedDepth++;
  try {
    return fn();
  } finally {
    untrackedDepth--;
  }
}

/** Called by everything that scopes keep track of when it is made. */
export function track(item: Scoped): void {
  if (untrackedDepth === 0) currentScope()?.add(item);
}

type Survivors = (value: object) => Iterable<Scoped> | undefined;
let survivorsOf: Survivors = () => undefined;

/** Set once by the autograd layer: what must live for an object (a tensor: itself, and its graph's nodes). */
export function setSurvivors(fn: Survivors): void {
  survivorsOf = fn;
}

/** Walks arrays, plain objects, Maps and Sets. */
function collect(value: unknown, kept: Set<Scoped>, seen: Set<object>): void {
  if (typeof value !== "object" || value === null || seen.has(value)) return;
  seen.add(value);
  const survivors = survivorsOf(value);
  if (survivors) {
    for (const item of survivors) kept.add(item);
    return;
  }
  if (ArrayBuffer.isView(value)) return;
  if (value instanceof Map) {
    for (const [key, item] of value) {
      collect(key, kept, seen);
      collect(item, kept, seen);
    }
  } else if (Array.isArray(value) || value instanceof Set) {
    for (const item of value) collect(item, kept, seen);
  } else {
    for (const item of Object.values(value)) collect(item, kept, seen);
  }
}

const isPromise = (value: unknown): value is PromiseLike<unknown> =>
  typeof value === "object" && value !== null && typeof (value as { then?: unknown }).then === "function";

/**
 * Runs `fn` and frees every tensor it made, except those in what it returns (arrays, objects, Maps and Sets are
 * walked). An error frees all. Refuses a promise: use scopeAsync.
 */
export function scope<T>(fn: () => T): T {
  requireFunction("scope", fn);
  // Inside untracked() a scope still frees what is its own; what survives it belongs to nobody.
  const depth = untrackedDepth;
  const outer = depth === 0 ? currentScope() : undefined;
  const inner = new Scope();
  stack.push(inner);
  untrackedDepth = 0;
  const kept = new Set<Scoped>();
  try {
    const result = fn();
    if (isPromise(result)) {
      result.then(undefined, () => undefined);
      throw new ArgumentError(
        "scope: the function returned a promise, whose tensors would be freed too early; use scopeAsync",
      );
    }
    collect(result, kept, new Set());
    return result;
  } finally {
    stack.pop();
    untrackedDepth = depth;
    inner.close(kept, outer);
  }
}

/** The same for an async function; tensors made in what it awaits belong to it too. */
export async function scopeAsync<T>(fn: () => Promise<T>): Promise<T> {
  requireFunction("scopeAsync", fn);
  const outer = currentScope();
  const inner = new Scope();
  const kept = new Set<Scoped>();
  try {
    const result = await asynchronous.run(inner, fn);
    collect(result, kept, new Set());
    return result;
  } finally {
    inner.close(kept, outer);
  }
}
