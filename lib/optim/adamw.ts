// AdamW (arXiv 1711.05101), as torch.optim.AdamW computes it; moments and master weights in float32, on the device or in
// host memory. It runs where they are: gradients and weights that lie elsewhere cross in pieces, beside the arithmetic.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { byLayer } from "../tensor/layer.js";
import { scope, untracked } from "../tensor/scope.js";
import { Parameter, type ParameterTier, Tensor } from "../tensor/tensor.js";
import { clearGradients, flatPart, gradientsOf, layerOf, queues, scalarIn, windowElements } from "../tensor/tiers.js";

export interface AdamWOptions {
  learningRate?: number;
  betas?: readonly [number, number];
  eps?: number;
  weightDecay?: number;
  /** Decay touches tensors of two or more dimensions only. Default false, as in torch. */
  decayOnlyMatrices?: boolean;
  /** What of a flat parameter decays, where it stands for several tensors (lib/parallel/zero); undefined: as above. */
  decayRanges?: (param: Tensor) => readonly DecayRange[] | undefined;
  /**
   * host: moments, and the master weights of bfloat16 parameters, live in host memory, and the update runs there.
   * Parameters and gradients may live on either side (CausalLM.configureMemory). Results are the same, bit for bit.
   * Default: none, all on the device.
   */
  offload?: "none" | "host";
  /** Elements of a tensor that cross at a time; two pieces of each are on their way. Default 4 Mi. */
  pieceElements?: number;
}

/** Elements `begin` .. `begin + count - 1` of a flat parameter, whose weights decay or do not. */
export interface DecayRange {
  begin: number;
  count: number;
  decays: boolean;
}

export interface StepOptions {
  /** Scalar on the device that every gradient is multiplied by (clipping). */
  factor?: Tensor | null;
  /** int64 scalar on the device: where it is 0, nothing changes and the step is not counted. */
  finite?: Tensor | null;
}

interface State {
  param: Tensor;
  m: Tensor;
  v: Tensor;
  /** float32 weights that a bfloat16 parameter is rounded from. */
  master: Tensor | null;
}

/** A share of a parameter's update that is one call of the kernel. */
interface Piece extends State {
  grad: Tensor;
  begin: number;
  count: number;
  decay: number;
  /** What crosses: the gradient comes, the weights come and go, or rounded ones go. */
  gradComes: boolean;
  weightsCome: boolean;
  weightsGo: boolean;
}

/** Room for one piece on its way. */
interface Slot {
  grad: Tensor | null;
  weights: Tensor | null;
}

const tierOf = (param: Tensor): ParameterTier => (param instanceof Parameter ? param.tier : "device");

/** At most this many updates wait in the queue before step() blocks. */
const mostQueued = 2;

export class AdamW {
  learningRate: number;
  readonly betas: readonly [number, number];
  readonly eps: number;
  readonly weightDecay: number;
  readonly #decayOnlyMatrices: boolean;
  readonly #decayRanges: NonNullable<AdamWOptions["decayRanges"]>;
  readonly #tier: ParameterTier;
  readonly #pieceElements: number;
  readonly #params: Tensor[];
  #states: State[] | undefined;
  #step: Tensor | undefined;

  /** Frozen parameters have no state. Errors: ArgumentError. */
  constructor(params: Iterable<Tensor>, options: AdamWOptions = {}) {
    this.learningRate = options.learningRate ?? 1e-3;
    this.betas = options.betas ?? [0.9, 0.999];
    this.eps = options.eps ?? 1e-8;
    this.weightDecay = options.weightDecay ?? 0;
    this.#decayOnlyMatrices = options.decayOnlyMatrices ?? false;
    this.#decayRanges = options.decayRanges ?? (() => undefined);
    const { offload = "none", pieceElements = windowElements } = options;
    if (offload !== "none" && offload !== "host")
      throw new ArgumentError(`AdamW: offload is ${JSON.stringify(offload)}, expected none or host`);
    if (!Number.isSafeInteger(pieceElements) || pieceElements < 1)
      throw new ArgumentError(`AdamW: pieceElements is ${pieceElements}, expected a whole number, 1 or more`);
    this.#tier = offload === "host" ? "host" : "device";
    this.#pieceElements = pieceElements;
    this.#params = [...new Set(params)].filter((param) => param.requiresGrad);
    if (this.#params.length === 0) throw new ArgumentError("AdamW: no parameter requires gradients");
    const check = (name: string, value: number, low: number, high: number): void => {
      if (typeof value !== "number" || !(value >= low && value < high))
        throw new ArgumentError(
          `AdamW: ${name} is ${typeof value === "string" ? JSON.stringify(value) : String(value)}, expected ${low} <= ${name} < ${high}`,
        );
    };
    check("learningRate", this.learningRate, 0, Number.POSITIVE_INFINITY);
    check("beta1", this.betas[0], 0, 1);
    check("beta2", this.betas[1], 0, 1);
    check("eps", this.eps, 0, Number.POSITIVE_INFINITY);
    check("weightDecay", this.weightDecay, 0, Number.POSITIVE_INFINITY);
  }

  /** Made at the first step, or before a checkpoint is loaded. Errors: OutOfMemoryError, and nothing is held then. */
  #ensure(): { states: State[]; step: Tensor } {
    if (!this.#states || !this.#step) {
      const { device } = this.#params[0] as Tensor;
      const made: Tensor[] = [];
      const empty = (shape: readonly number[], dtype: "float32" | "int64"): Tensor => {
        const tensor = Tensor.empty(shape, { device, dtype, category: "optimizer", tier: this.#tier });
        made.push(tensor);
        return tensor;
      };
      try {
        untracked(() => {
          const step = empty([], "int64").fill(0);
          this.#states = Array.from(byLayer(this.#params, layerOf), (param) => {
            const state: State = {
              param,
              m: empty(param.shape, "float32").fill(0),
              v: empty(param.shape, "float32").fill(0),
              master: param.dtype === "bfloat16" ? empty(param.shape, "float32") : null,
            };
            if (state.master) binding.ops.copy(param.native(), state.master.native());
            return state;
          });
          this.#step = step;
        });
      } catch (error) {
        for (const tensor of made) tensor.dispose();
        throw error;
      }
    }
    return { states: this.#states as State[], step: this.#step as Tensor };
  }

  /** Makes the states now instead of at the first step. Errors: OutOfMemoryError, and nothing is held then. */
  prepare(): void {
    this.#ensure();
  }

  /** The calls of one update, in the order of the parameters. What crosses is cut; what does not is one call. */
  #pieces(states: readonly State[]): Piece[] {
    const placed = new Map(gradientsOf(this.#params).map((gradient) => [gradient.leaf, gradient]));
    return states.flatMap((state) => {
      const { param, master } = state;
      const gradient = placed.get(param);
      if (!gradient) return [];
      const { grad } = gradient;
      if (grad.shape.join() !== param.shape.join() || !grad.isContiguous)
        throw new ArgumentError(
          `AdamW: a gradient has shape [${grad.shape}] and strides [${grad.strides}], its parameter shape ` +
            `[${param.shape}]; give a contiguous gradient of that shape`,
        );
      const away = tierOf(param) !== this.#tier;
      const gradComes = gradient.tier !== this.#tier;
      const weightsCome = away && master === null;
      const whole = { ...state, grad, gradComes, weightsCome, weightsGo: away };
      const ranges = this.#decayRanges(param) ?? [
        { begin: 0, count: param.size, decays: !this.#decayOnlyMatrices || param.ndim >= 2 },
      ];
      const most = gradComes || weightsCome ? this.#pieceElements : param.size;
      return ranges.flatMap(({ begin: first, count, decays }) => {
        const pieces: Piece[] = [];
        for (let begin = first; begin < first + count; begin += most)
          pieces.push({
            ...whole,
            begin,
            count: Math.min(most, first + count - begin),
            decay: decays ? this.weightDecay : 0,
          });
        return pieces;
      });
    });
  }

  /** One update of every parameter that has a gradient. Enqueues only; blocks while more than two updates wait. */
  step(options: StepOptions = {}): void {
    const { states, step } = this.#ensure();
    const device = step.device.native;
    scope(() => {
      // All memory is taken before the update begins: it is enqueued as a whole or not at all.
      const pieces = this.#pieces(states);
      const slots = this.#slots(pieces);
      const [factor, finite] = [options.factor, options.finite].map((scalar) =>
        scalar ? scalarIn(this.#tier, scalar) : null,
      ) as [Tensor | null, Tensor | null];
      binding.beginUpdate(device);
      try {
        binding.ops.adamwAdvance(step.native(), finite?.native() ?? null);
        this.#update(pieces, slots, step, factor, finite);
      } finally {
        binding.endUpdate(device);
      }
    });
    binding.limitSteps(device, mostQueued);
  }

  /** Room for two pieces that cross: one is computed while the next one comes. */
  #slots(pieces: readonly Piece[]): Slot[] {
    const { device } = this.#params[0] as Tensor;
    const largest = (which: (piece: Piece) => boolean): number =>
      pieces.reduce((most, piece) => (which(piece) ? Math.max(most, piece.count) : most), 0);
    const room = (size: number): Tensor | null =>
      size === 0 ? null : Tensor.empty([size], { device, dtype: "float32", category: "workspace", tier: this.#tier });
    const [grads, weights] = [largest((piece) => piece.gradComes), largest((piece) => piece.weightsCome)];
    return [0, 1].map(() => ({ grad: room(grads), weights: room(weights) }));
  }

  /** Enqueues the kernel for each piece, and the copies around it on the copy queues. */
  #update(
    pieces: readonly Piece[],
    slots: readonly Slot[],
    step: Tensor,
    factor: Tensor | null,
    finite: Tensor | null,
  ): void {
    const device = step.device.native;
    const [inward, outward] = this.#tier === "host" ? [queues.copyOut, queues.copyIn] : [queues.copyIn, queues.copyOut];
    const copyPart = (from: Tensor, begin: number, to: Tensor, at: number, count: number, queue: number): void => {
      const [source, target] = [flatPart(from, begin, count), flatPart(to, at, count)];
      binding.ops.copy(source.native(), target.native(), queue);
      source.dispose();
      target.dispose();
    };
    const crosses = (piece: Piece | undefined): piece is Piece =>
      piece !== undefined && (piece.gradComes || piece.weightsCome);
    let arriving = 0;
    const bring = ({ param, grad, begin, count, gradComes, weightsCome }: Piece): void => {
      const slot = slots[arriving++ % 2] as Slot;
      if (gradComes) copyPart(grad, begin, slot.grad as Tensor, 0, count, inward);
      if (weightsCome) copyPart(param, begin, slot.weights as Tensor, 0, count, inward);
    };
    let used = 0;
    for (const [i, piece] of byLayer(pieces.entries(), ([, { param }]) => layerOf(param))) {
      if (i === 0 && crosses(piece)) bring(piece);
      // Before this piece's arithmetic is enqueued, for which a copy would wait.
      const next = pieces[i + 1];
      if (crosses(next)) bring(next);
      const slot = crosses(piece) ? (slots[used++ % 2] as Slot) : null;
      const { param, m, v, master, grad, begin, count, decay, gradComes, weightsCome, weightsGo } = piece;
      scope(() => {
        const part = (tensor: Tensor): Tensor => flatPart(tensor, begin, count);
        const arrived = (tensor: Tensor | null): Tensor => flatPart(tensor as Tensor, 0, count);
        const weights = weightsCome ? arrived(slot?.weights ?? null) : part(weightsGo ? (master as Tensor) : param);
        binding.ops.adamw(
          weights.native(),
          (gradComes ? arrived(slot?.grad ?? null) : part(grad)).native(),
          part(m).native(),
          part(v).native(),
          step.native(),
          master && !weightsGo ? part(master).native() : null,
          factor?.native() ?? null,
          finite?.native() ?? null,
          this.learningRate,
          this.betas[0],
          this.betas[1],
          this.eps,
          decay,
        );
        if (weightsGo) copyPart(weights, 0, param, begin, count, outward);
      });
    }
    // The next forward reads the parameters, and so does whoever stops after this update.
    if (pieces.some((piece) => piece.weightsGo)) binding.waitQueue(device, queues.compute, outward);
  }

  /** Frees the gradients. */
  zeroGrad(): void {
    clearGradients(this.#params);
  }

  /** Frees the states; the optimizer is of no more use. */
  dispose(): void {
    for (const { m, v, master } of this.#states ?? []) for (const tensor of [m, v, master]) tensor?.dispose();
    this.#step?.dispose();
    this.#states = undefined;
    this.#step = undefined;
  }

  /** Updates so far, int64; and what is held for a parameter. Makes them where they are not yet. */
  get stepCount(): Tensor {
    return this.#ensure().step;
  }

  stateOf(param: Tensor): Record<string, Tensor> {
    const state = this.#ensure().states.find((one) => one.param === param);
    if (state === undefined) throw new ArgumentError("AdamW: it does not update this parameter");
    const { m, v, master } = state;
    return { m, v, ...(master && { master }) };
  }

  /** Step count and moments by name, for checkpoints; `names` gives each parameter's. Makes them where they are not yet. */
  namedState(names: Map<Tensor, string>): [string, Tensor][] {
    const { states, step } = this.#ensure();
    const result: [string, Tensor][] = [["step", step]];
    for (const { param, m, v, master } of states) {
      const name = names.get(param);
      if (name === undefined) throw new ArgumentError("AdamW: a parameter has no name to store its state under");
      result.push([`m.${name}`, m], [`v.${name}`, v]);
      if (master) result.push([`master.${name}`, master]);
    }
    return result;
  }
}
