// The tape: functions with a forward and a backward, the nodes they leave, and the walk that makes gradients.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { enterLayer, layerAtWork } from "../tensor/layer.js";
import { requireFunction, type Scope, type Scoped, setSurvivors, track, untracked } from "../tensor/scope.js";
import { defer, Tensor } from "../tensor/tensor.js";

let enabled = true;

/** Whether ops on tensors that require gradients leave nodes. */
export const isGradEnabled = (): boolean => enabled;

function withGrad<T>(value: boolean, fn: () => T): T {
  requireFunction("noGrad", fn);
  const before = enabled;
  enabled = value;
  try {
    return fn();
  } finally {
    enabled = before;
  }
}

/** Runs `fn` without leaving nodes. `fn` is synchronous. */
export const noGrad = <T>(fn: () => T): T => withGrad(false, fn);
/** Runs `fn` with nodes, also inside noGrad (recomputation in a backward does). */
export const enableGrad = <T>(fn: () => T): T => withGrad(true, fn);

/** Runs `fn` with nodes for a backward that follows at once: results that nothing reads are not computed. */
export const recompute = <T>(fn: () => T): T => defer(true, () => enableGrad(fn));

/** What a backward returns for an argument whose gradient it has added to `argument.grad` itself. */
export const accumulated: unique symbol = Symbol("accumulated");
export type Grad = Tensor | typeof accumulated | null | undefined;

interface Saved {
  tensor: Tensor;
  version: number;
}

/** The gradient of a weight on its way: float32, for a leaf `grad` itself, so that no temporary is made. */
export class WeightGrad {
  /** What backward is to return for the weight. */
  readonly result: Grad;
  readonly #out: Tensor;
  #filled: boolean;

  constructor(target: Tensor) {
    const make = (): Tensor =>
      Tensor.empty(target.shape, { device: target.device, dtype: "float32", category: "grads" });
    this.#filled = target.node === null && target.grad !== null;
    if (target.node) {
      this.#out = make();
      this.result = this.#out;
    } else {
      target.grad ??= untracked(make);
      this.#out = target.grad;
      this.result = accumulated;
    }
  }

  /** One share: `write(out, accumulate)` fills or adds to a tensor of the weight's shape. At least one is due. */
  add(write: (out: Tensor, accumulate: boolean) => void): void {
    write(this.#out, this.#filled);
    this.#filled = true;
  }
}

/** What a function keeps between its forward and its backward. */
export class Context {
  /** Arguments by position; which of them want a gradient. */
  readonly needsGrad: readonly boolean[];
  readonly #args: readonly unknown[];
  #saved: Saved[] = [];
  readonly #owned: { dispose(): void }[] = [];
  #owedToWalk: { dispose(): void }[] = [];
  /** Anything that is no tensor. */
  values: Record<string, unknown> = {};
  #final = false;
  /** Of leaves, in this backward. */
  readonly #grads = new Map<Tensor, WeightGrad>();

  constructor(args: readonly unknown[]) {
    this.#args = args;
    this.needsGrad = args.map((arg) => enabled && arg instanceof Tensor && arg.requiresGrad);
  }

  /** Whether a backward can come. */
  get recording(): boolean {
    return this.needsGrad.includes(true);
  }

  /** Keeps tensors for the backward. Their own handles may be disposed; writing to them in place is an error then. */
  save(...tensors: (Tensor | null | undefined)[]): void {
    if (!this.recording) return;
    for (const tensor of tensors) {
      if (!tensor) continue;
      // Read first: what is saved is needed.
      const version = binding.version(tensor.native());
      this.#saved.push({ tensor: untracked(() => tensor.alias()), version });
    }
  }

  /** The saved tensor number `index`, checked for writes since. */
  saved(index: number): Tensor {
    const entry = this.#saved[index];
    if (!entry)
      throw new ArgumentError(
        "the graph was freed by an earlier backward(); pass {retainGraph: true} to walk it twice",
      );
    const version = binding.version(entry.tensor.native());
    if (version !== entry.version)
      throw new ArgumentError(
        `a tensor of shape [${entry.tensor.shape}] that backward() needs was written in place ` +
          `(version ${version}, ${entry.version} when it was saved); write to a clone instead`,
      );
    return entry.tensor;
  }

  /** Whether the saved tensor number `index` may be overwritten: no walk comes again, nobody else holds its bytes. */
  lastUse(index: number): boolean {
    return this.#final && alone(this.saved(index));
  }

  /** During a backward: whether the graph is freed behind it. */
  get final(): boolean {
    return this.#final;
  }

  /** A backward begins. final: the graph is freed behind it. */
  begin(final: boolean): void {
    this.#final = final;
    this.#grads.clear();
  }

  /** Where the gradient of a weight goes, share by share; null where none is wanted. */
  weight(index: number): WeightGrad | null {
    if (!this.needsGrad[index]) return null;
    const target = this.#args[index] as Tensor;
    if (target.node !== null) return new WeightGrad(target);
    // A leaf that is several arguments has one gradient, which the first share fills.
    const grad = this.#grads.get(target) ?? new WeightGrad(target);
    this.#grads.set(target, grad);
    return grad;
  }

  /** The same for a single share. Returns what backward is to return for the weight. */
  weightGrad(index: number, write: (out: Tensor, accumulate: boolean) => void): Grad {
    const grad = this.weight(index);
    grad?.add(write);
    return grad?.result ?? null;
  }

  /** Something that is to be disposed with what was saved; walk: not before the walk that frees the graph has ended. */
  own(item: { dispose(): void }, { walk = false } = {}): void {
    if (walk) this.#owedToWalk.push(item);
    else this.#owned.push(item);
  }

  /** What the walk is to dispose of when it ends. */
  takeOwed(): { dispose(): void }[] {
    const owed = this.#owedToWalk;
    this.#owedToWalk = [];
    return owed;
  }

  /** Lets go of what was saved. */
  free(): void {
    for (const item of [...this.#owned, ...this.takeOwed()]) item.dispose();
    for (const { tensor } of this.#saved) tensor.dispose();
    this.#saved = [];
  }
}

/** Whether nobody else holds a tensor's bytes, as a gradient that a backward got and may then overwrite. */
export const alone = (tensor: Tensor): boolean => binding.references(tensor.native()) === 1 && tensor.isContiguous;

/** A gradient that a backward got, as its own: itself, or a copy where others hold it. */
export function owned(grad: Tensor): Tensor {
  if (alone(grad)) return grad;
  const copy = Tensor.empty(grad.shape, { device: grad.device, dtype: grad.dtype });
  binding.ops.copy(grad.native(), copy.native());
  return copy;
}

let sequence = 0;

/** One application of a function in the graph. */
export class Node implements Scoped {
  readonly sequence = sequence++;
  /** The layer of a model that it is part of; -1: none. */
  readonly layer = layerAtWork();
  readonly name: string;
  readonly context: Context;
  /** For each argument that wants a gradient: itself. */
  inputs: readonly (Tensor | null)[];
  /** Nodes of the inputs, kept apart since an input's handle may be disposed. */
  next: readonly (Node | null)[];
  readonly nextIndex: readonly number[];
  outputs: Tensor[] = [];
  readonly backward: (ctx: Context, grads: (Tensor | null)[]) => Grad[];
  freed = false;
  scope: Scope | undefined = undefined;

  constructor(
    name: string,
    context: Context,
    args: readonly unknown[],
    backward: (ctx: Context, grads: (Tensor | null)[]) => Grad[],
  ) {
    this.name = name;
    this.context = context;
    this.inputs = args.map((arg, i) => (context.needsGrad[i] ? (arg as Tensor) : null));
    this.next = this.inputs.map((input) => input?.node ?? null);
    this.nextIndex = this.inputs.map((input) => input?.outputIndex ?? 0);
    this.backward = backward;
    track(this);
  }

  dispose(): void {
    if (this.freed) return;
    this.freed = true;
    this.scope?.delete(this);
    this.context.free();
  }

  /** Lets go of the graph behind it, so that a root that stays does not hold all of it. */
  cut(): void {
    this.inputs = [];
    this.next = [];
    this.outputs = [];
  }
}

/**
 * A differentiable function. `forward` computes without recording and may save tensors; `backward` gets one gradient
 * an output (null where none came) and returns one an argument (null or undefined: none).
 */
export abstract class Function<Args extends unknown[], Result extends Tensor | Tensor[]> {
  abstract readonly name: string;
  abstract forward(ctx: Context, ...args: Args): Result;
  abstract backward(ctx: Context, ...grads: (Tensor | null)[]): Grad[];

  apply(...args: Args): Result {
    const ctx = new Context(args);
    let result: Result;
    try {
      result = noGrad(() => this.forward(ctx, ...args));
    } catch (error) {
      ctx.free();
      // What JavaScript says when an argument is not what the types ask for names neither the op nor the argument.
      if (error instanceof TypeError)
        throw new ArgumentError(
          `${this.name}: cannot work with the arguments (${args.map(describeArgument).join(", ")}): ${error.message}`,
          { op: this.name },
          { cause: error },
        );
      throw error;
    }
    if (!ctx.recording) return result;
    const node = new Node(this.name, ctx, args, (context, grads) => this.backward(context, ...grads));
    const outputs: Tensor[] = Array.isArray(result) ? result : [result as Tensor];
    outputs.forEach((output, index) => {
      output.requiresGrad = true;
      output.node = node;
      output.outputIndex = index;
    });
    node.outputs = outputs;
    return result;
  }
}

/** An argument in an error message: tensors by dtype and shape, everything else by its kind. */
function describeArgument(value: unknown): string {
  if (value instanceof Tensor) return `${value.dtype}[${value.shape.join(", ")}]`;
  return typeof value === "number" || value === null ? String(value) : typeof value;
}

/** Nodes reachable from a node, itself included. */
function reachable(root: Node): Set<Node> {
  const found = new Set<Node>([root]);
  const queue = [root];
  for (let node = queue.pop(); node; node = queue.pop())
    for (const next of node.next)
      if (next && !found.has(next)) {
        found.add(next);
        queue.push(next);
      }
  return found;
}

setSurvivors((value) => {
  if (!(value instanceof Tensor)) return value instanceof Node ? reachable(value) : undefined;
  const kept: Scoped[] = [value];
  if (value.grad) kept.push(value.grad);
  if (value.node && !value.node.freed) kept.push(...reachable(value.node));
  return kept;
});

/** Adds `grad` to `into`, in place where `into` has no other user; consumes both. */
function addGrads(into: Tensor, grad: Tensor): Tensor {
  // A shared storage (a gradient passed on to two branches) must not be written.
  const inPlace = binding.references(into.native()) === 1;
  const target = inPlace ? into : into.clone();
  binding.ops.axpby(grad.native(), target.native(), null, 1, 1);
  if (!inPlace) into.dispose();
  grad.dispose();
  return target;
}

/** Adds a gradient to a leaf's `grad` (float32), consuming it. */
function accumulateLeaf(leaf: Tensor, grad: Tensor): void {
  if (!leaf.grad) {
    if (grad.dtype === "float32" || grad.dtype === "float64") {
      // Stolen when nobody else holds its bytes and it is laid out plainly.
      if (binding.references(grad.native()) === 1 && grad.isContiguous) {
        leaf.grad = grad.keep();
        return;
      }
    }
    const made = untracked(() =>
      Tensor.empty(leaf.shape, {
        device: leaf.device,
        dtype: grad.dtype === "float64" ? "float64" : "float32",
        category: "grads",
      }),
    );
    binding.ops.copy(grad.native(), made.native());
    leaf.grad = made;
  } else {
    binding.ops.axpby(grad.native(), leaf.grad.native(), null, 1, 1);
  }
  grad.dispose();
}

export interface BackwardOptions {
  /** Keeps the graph for another walk. */
  retainGraph?: boolean;
  /** Called with each node's name and position after it was walked (progress). */
  onNode?: (name: string) => void;
  /** False: parameter hooks are left to the caller. */
  hooks?: boolean;
  /** The gradient is handed over: the walk may overwrite it, and disposes it. */
  consume?: boolean;
}

/**
 * Walks the graph from `root` and adds gradients to the `grad` of its leaves, in float32. Frees what it walked except
 * the root. grad: that of the root, default 1 for a single element.
 */
export function backward(root: Tensor, grad?: Tensor | null, options: BackwardOptions = {}): void {
  const start = root.node;
  if (!start) {
    if (!root.requiresGrad)
      throw new ArgumentError("backward(): the tensor does not require gradients and has no graph");
    const seed = seedOf(root, grad);
    accumulateLeaf(root, seed);
    return;
  }
  if (start.freed)
    throw new ArgumentError(
      "backward(): this graph was freed by an earlier backward(); pass {retainGraph: true} to walk it twice",
    );
  const nodes = reachable(start);
  // How many gradients each node and each leaf still waits for.
  const waiting = new Map<Node | Tensor, number>();
  for (const node of nodes)
    node.inputs.forEach((input, i) => {
      if (!input) return;
      const target = node.next[i] ?? input;
      waiting.set(target, (waiting.get(target) ?? 0) + 1);
    });
  const pending = new Map<Node, (Tensor | null)[]>();
  const ready: Node[] = [start];
  const first: (Tensor | null)[] = start.outputs.map(() => null);
  first[root.outputIndex] = options.consume && grad ? grad : seedOf(root, grad);
  pending.set(start, first);
  const quietly = (fn: () => void): void => noGrad(() => untracked(() => defer(false, fn)));
  // Gradients that the node at work has got, then those it made; after an error they are nobody's.
  let given: Grad[] = [];
  const owed: { dispose(): void }[] = [];
  quietly(() => {
    const layer = layerAtWork();
    try {
      for (let node = ready.pop(); node; node = ready.pop()) {
        enterLayer(node.layer);
        const grads = pending.get(node) ?? node.outputs.map(() => null);
        pending.delete(node);
        given = grads;
        node.context.begin(!options.retainGraph);
        // Whoever needs a result saved it under a handle of its own.
        if (!options.retainGraph) for (const output of node.outputs) if (output !== root) output.dispose();
        const results = grads.some((g) => g) ? node.backward(node.context, grads) : [];
        for (const g of grads) if (g && !results.includes(g)) g.dispose();
        given = [...results];
        if (!options.retainGraph) {
          owed.push(...node.context.takeOwed());
          node.dispose();
        }
        const arrived: Node[] = [];
        node.inputs.forEach((input, i) => {
          if (!input) return;
          const result = results[i];
          const next = node.next[i];
          const target = next ?? input;
          if (result instanceof Tensor) {
            if (next) {
              const slots = pending.get(next) ?? next.outputs.map(() => null);
              const index = node.nextIndex[i] as number;
              const present = slots[index];
              slots[index] = present ? addGrads(present, result) : result;
              pending.set(next, slots);
            } else {
              accumulateLeaf(input, result);
            }
          }
          given[i] = null;
          const left = (waiting.get(target) as number) - 1;
          waiting.set(target, left);
          if (left > 0) return;
          if (next) arrived.push(next);
          else if (options.hooks !== false) input.runHooks();
        });
        given = [];
        ready.push(...arrived);
        // Latest first: the order of the forward reversed, which is when memory is freed soonest.
        ready.sort((a, b) => a.sequence - b.sequence);
        if (!options.retainGraph) node.cut();
        options.onNode?.(node.name);
      }
    } finally {
      enterLayer(layer);
      for (const slots of [given, ...pending.values()]) for (const g of slots) if (g instanceof Tensor) g.dispose();
      for (const item of owed) item.dispose();
    }
  });
}

/**
 * The gradient of x for the gradient dy of fn(x): runs fn (again), without the results that nothing reads, and walks
 * back at once; parameters get theirs in `grad`. Consumes dy, and may overwrite it where nobody else holds it.
 * wanted: false where x has none; null is returned then. What fn makes is the caller's scope's.
 */
export function pullBack(fn: (x: Tensor) => Tensor, x: Tensor, dy: Tensor, wanted: boolean): Tensor | null {
  let dx: Tensor | null = null;
  const input = noGrad(() => x.alias());
  if (wanted) {
    const end = new Node("input", new Context([]), [], (_, [grad]) => {
      dx = grad?.alias() ?? null;
      return [];
    });
    end.outputs = [input];
    input.node = end;
    input.requiresGrad = true;
  }
  const y = recompute(() => fn(input));
  // Its value is nobody's; what a deferred one would be made from must not stay.
  y.dispose();
  backward(y, dy, { hooks: false, consume: true });
  return dx;
}

function seedOf(root: Tensor, grad: Tensor | null | undefined): Tensor {
  if (grad) {
    if (grad.shape.length !== root.shape.length || grad.shape.some((size, i) => size !== root.shape[i]))
      throw new ArgumentError(`backward(): the gradient has shape [${grad.shape}], the tensor [${root.shape}]`);
    return untracked(() => grad.alias());
  }
  if (root.size !== 1)
    throw new ArgumentError(
      `backward(): a tensor of shape [${root.shape}] needs a gradient; only a single element has a default (1)`,
    );
  return untracked(() => Tensor.full(root.shape, 1, { device: root.device, dtype: root.dtype }));
}
