// The causal decoder that all families share: embedding, layers, norm, and lm_head (or the embedding again).

import { isGradEnabled, noGrad } from "../autograd/function.js";
import { ArgumentError } from "../errors.js";
import type { Adapter, StepDropout } from "../nn/adapter.js";
import type { Frequencies, TokenLayout } from "../nn/attention.js";
import { DecoderLayer } from "../nn/decoder_layer.js";
import { Embedding } from "../nn/embedding.js";
import { Linear } from "../nn/linear.js";
import { Module, type ModuleOptions } from "../nn/module.js";
import { Norm } from "../nn/norm.js";
import { type RopeParameters, ropeDependsOnLength, rotaryEmbedding } from "../nn/rotary_embedding.js";
import { Routing } from "../nn/routing.js";
import { add, copyInto, linear, narrow, scale, unary } from "../ops/index.js";
import type { SequenceGroup } from "../parallel/mesh.js";
import type { Owned, ZeroOptions } from "../parallel/zero.js";
import type { ModelShape } from "../report/model_flops.js";
import { checkpoint } from "../sequence/checkpoint.js";
import { type CachedTokens, type CacheSpan, KeyValueCache } from "../sequence/key_value_cache.js";
import { linearCrossEntropy, linearTokenLosses } from "../sequence/loss.js";
import { CheckpointStore } from "../sequence/offload.js";
import { RingLayout } from "../sequence/ring.js";
import { ModelStates, type StateOptions, type Unit } from "../sequence/states.js";
import { tensor } from "../tensor/create.js";
import { type Device, device as openDevice } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { inLayer } from "../tensor/layer.js";
import { scope, untracked } from "../tensor/scope.js";
import { type Parameter, Tensor } from "../tensor/tensor.js";
import { attachAdapters, isAdapterParameter, storeBase } from "./adapter.js";
import { type Integers, type LossInput, type ModelInput, prepareInput, prepareTargets, tokenNumbers } from "./batch.js";
import { type ModelConfig, modelShape } from "./config.js";
import type { ModelExperts } from "./expert_fields.js";
import { type GeneratedToken, type GenerateOptions, generate } from "./generate.js";
import { storedIn } from "./registry.js";
import { displayName, type Place, type Stored } from "./stored.js";

export interface MemoryOptions {
  /** Rows (tokens) of a tile of norm and MLP; 0: no tiles. */
  tileMlp?: number;
  /** Rows of a tile of logits and loss; 0: one tile of all rows. */
  tileLoss?: number;
  /** Layers in a checkpoint: only what goes into them is kept for the backward; 0: no checkpoints. */
  checkpointEvery?: number;
  /** With checkpoints of one layer: attention's results are kept too, so that it runs forward once. */
  keepAttention?: boolean;
  /** Where checkpoints wait that exceed deviceBytes on the device. */
  offload?: "none" | "host" | "disk";
  deviceBytes?: number;
  /** How checkpoints are stored that went out; int8 and float8 are block-scaled and change results. */
  format?: "native" | "int8" | "float8";
  /** Of the disk tier; null: the system's folder for temporary files. */
  directory?: string | null;
  /** The input of the next checkpoint is fetched beside the backward of this one; false saves its bytes. */
  prefetch?: boolean;
  /** Attention runs in this many chunks of query heads, lowered to the nearest divisor of those that a rank holds. */
  headChunks?: number;
  /** Where parameters and gradients live. With parameters on the host, a backward needs checkpoints. */
  states?: StateOptions;
}

/** Where routers count, of a model with experts. */
export interface RoutingOptions {
  readonly routing?: Routing | null;
  /** Whether this is the first forward of these tokens. */
  readonly record?: boolean;
}

/** How tokens are run. */
export interface ForwardCall extends RoutingOptions {
  /**
   * Of what adapters drop, a whole number from 0: with the same one the same goes. null: nothing is dropped. Default:
   * nothing under noGrad, else another choice in each call.
   */
  readonly dropoutSeed?: number | null;
}

/** All of them, as chosen; what lives where is kept by the states themselves. */
type Chosen = Required<Omit<MemoryOptions, "states">>;

/** Called when work on a layer is about to be enqueued. */
export type LayerHook = (phase: "forward", layer: number) => void;

interface ForwardOptions extends Chosen {
  states: ModelStates;
  head: Unit;
  onLayer: LayerHook | undefined;
  gradientMask: Tensor | null;
  /** [S] int32, the position of each token; null: positions are not embedded. */
  learned: Tensor | null;
  routing: Routing | null;
  /** Tokens before these; null: none. */
  cache: CachedTokens | null;
}

/** Token ids to the last hidden states. */
export class Decoder extends Module {
  readonly embedTokens: Embedding;
  /** [positions, H]; null: positions are no embedding. */
  readonly embedPositions: Embedding | null;
  readonly layers: readonly DecoderLayer[];
  readonly norm: Norm;
  readonly #embeddingScale: number;
  readonly #store = new CheckpointStore();
  #units: readonly Unit[] = [];

  constructor(config: ModelConfig, options: ModuleOptions) {
    super();
    const { numLayers, windows, layerRopes, maxPositionEmbeddings: positions, hiddenSize } = config;
    this.embedTokens = new Embedding(config.vocabSize, hiddenSize, options);
    this.embedPositions = config.learnedPositions ? new Embedding(positions, hiddenSize, options) : null;
    let withExperts = 0;
    this.layers = Array.from({ length: numLayers }, (_, layer) => {
      const experts = config.experts?.layers[layer] ? { ...config.experts, layer: withExperts++ } : null;
      const own = { window: windows[layer] ?? 0, rope: layerRopes[layer] ?? null, experts };
      return inLayer(layer, () => new DecoderLayer({ ...config, ...own }, options));
    });
    this.norm = new Norm(hiddenSize, config.norm, options);
    this.#embeddingScale = config.embeddingScale;
  }

  /** Parameters that are used together, in the order of the forward: embedding, layers, norm. All are there by now. */
  get units(): readonly Unit[] {
    if (this.#units.length === 0) {
      const embeddings = [this.embedTokens, this.embedPositions].flatMap((module) => module?.parameters() ?? []);
      this.#units = [embeddings, ...[...this.layers, this.norm].map((module) => module.parameters())];
    }
    return this.#units;
  }

  /** Most bytes of checkpoints so far that stayed on the device as they are. */
  get checkpointBytesOnDevice(): number {
    return this.#store.mostOnDevice;
  }

  /** The parameters that a backward needs first behind the norm; none without checkpoints. */
  firstBackward(every: number): Unit | undefined {
    const count = this.layers.length;
    return every === 0 ? undefined : this.units[1 + Math.floor((count - 1) / every) * every];
  }

  /** ids [T] int32 -> [T, H]. gradientMask: see Embedding. head: what is used next. */
  forward(ids: Tensor, layout: TokenLayout, options: ForwardOptions): Tensor {
    const { offload: tier, deviceBytes, format, directory, prefetch } = options;
    this.#store.configure({ tier, deviceBytes, format, directory, prefetch });
    const { states } = options;
    const why = states.needsCheckpoints;
    if (why !== null && options.checkpointEvery === 0 && isGradEnabled())
      throw new ArgumentError(
        `configureMemory: ${why} and checkpointEvery 0, so the backward would hold every layer's parameters on the ` +
          "device; set checkpointEvery to 1 or more, or run under noGrad",
      );
    const [embedding, firstLayer] = this.units as [Unit, Unit];
    const norm = this.units[this.layers.length + 1] as Unit;
    const run = () => {
      let x_TH = states.use(embedding, firstLayer, () => this.#embed(ids, options));
      const every = options.cache === null ? Math.max(1, options.checkpointEvery) : 1;
      for (let first = 0; first < this.layers.length; first += every) {
        x_TH = inLayer(first, () => {
          const y_TH = this.#segment(x_TH, first, this.layers.slice(first, first + every), layout, options);
          // What a backward needs of it is saved under handles of its own.
          x_TH.dispose();
          return y_TH;
        });
      }
      return states.use(norm, options.head, () => this.norm.forward(x_TH));
    };
    return states.guard(() => scope(run));
  }

  /** [S, H] */
  #embed(ids: Tensor, { gradientMask, learned }: ForwardOptions): Tensor {
    let x = this.embedTokens.forward(ids, gradientMask);
    if (this.embedPositions !== null && learned !== null) x = add(x, this.embedPositions.forward(learned));
    return this.#embeddingScale === 1 ? x : scale(x, roundTo(x.dtype, this.#embeddingScale));
  }

  /** Some layers, from number `first` on, as a checkpoint where asked. */
  #segment(
    x: Tensor,
    first: number,
    layers: readonly DecoderLayer[],
    layout: TokenLayout,
    options: ForwardOptions,
  ): Tensor {
    const { states } = options;
    const onLayer = (i: number): void => options.onLayer?.("forward", first + i);
    const around =
      (i: number) =>
      <T extends Tensor | null>(pass: "forward" | "backward", fn: () => T): T =>
        x.device.within(`${pass} of layer ${first + i}`, () => {
          const at = 1 + first + i;
          const unit = this.units[at] as Unit;
          // A backward without checkpoints reads what the forward read.
          const hold = options.checkpointEvery === 0 && isGradEnabled();
          if (pass === "forward") return states.use(unit, this.units[at + 1], fn, { hold });
          // Within a segment backwards; the segment before is run again from its start.
          const next = at - (i > 0 ? 1 : options.checkpointEvery);
          return states.useBackward(unit, next > 0 ? this.units[next] : undefined, fn);
        });
    const cacheOf = (layer: DecoderLayer) => options.cache?.layer(first + layers.indexOf(layer)) ?? null;
    const run = (layer: DecoderLayer, input: Tensor, of: TokenLayout) =>
      layer.forward(input, of, { ...options, cache: cacheOf(layer) });
    const only = layers.length === 1 ? layers[0] : undefined;
    if (options.checkpointEvery === 0 || options.cache !== null) {
      onLayer(0);
      return around(0)("forward", () => run(only as DecoderLayer, x, layout));
    }
    // Layers of one segment are checkpoints of their own while it is run again: each keeps its input and attention's
    // results until its backward, and the result of the last is not made a second time.
    const keep = (
      input: Tensor,
      of: TokenLayout,
      within: readonly DecoderLayer[],
      keepAttention: boolean,
      body: Body,
    ): Tensor =>
      checkpoint(
        (h, positions, cuSeqlens, rows, ...inverse) =>
          body(h, {
            ...of,
            dropout: of.dropout && { ...of.dropout, rows: rows as Tensor },
            positions: positions as Tensor,
            frequencies: of.frequencies.map((set, i) => ({ ...set, inverse: inverse[i] as Tensor })),
            cuSeqlens: cuSeqlens ?? null,
          }),
        input,
        {
          keepAttention,
          parameters: within.flatMap((layer) => [...layer.parameters()]),
          others: [of.positions, of.cuSeqlens, of.dropout?.rows ?? null, ...of.frequencies.map((set) => set.inverse)],
          store: within === layers ? this.#store : undefined,
          around: within.length === 1 ? around(layers.indexOf(within[0] as DecoderLayer)) : undefined,
        },
      );
    if (only) {
      onLayer(0);
      return keep(x, layout, layers, options.keepAttention, (h, of) => run(only, h, of));
    }
    return keep(x, layout, layers, false, (h, of) =>
      layers.reduce((input, layer, i) => {
        onLayer(i);
        return keep(input, of, [layer], true, (inner, layoutHere) => run(layer, inner, layoutHere));
      }, h),
    );
  }
}

/** The last row of each span: [spans, H]. */
function lastRows(x_TH: Tensor, spans: readonly CacheSpan[]): Tensor {
  const [rows, columns] = x_TH.shape as [number, number];
  if (rows === spans.length) return x_TH;
  const last = Tensor.empty([spans.length, columns], { device: x_TH.device, dtype: x_TH.dtype });
  for (const [i, { row, rows: count }] of spans.entries())
    copyInto(narrow(x_TH, 0, row + count - 1, 1), narrow(last, 0, i, 1));
  return last;
}

/** A number as a dtype has it. */
function roundTo(dtype: DType, value: number): number {
  const single = Math.fround(value);
  if (dtype !== "bfloat16") return single;
  const bits = new Uint32Array(Float32Array.of(single).buffer)[0] as number;
  // To the nearest, of two equally near ones the even one.
  const rounded = (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000;
  return new Float32Array(Uint32Array.of(rounded).buffer)[0] as number;
}

type Body = (x: Tensor, layout: TokenLayout) => Tensor;

/** Tokens of the longest document: of a batch alone, so that nothing hangs on another batch or on packing. */
function lengthOf(positions: BigInt64Array, bounds: BigInt64Array | null): number {
  let last = 0n;
  // Of a ring each rank sees a part of the positions; the longest document has the last one.
  if (bounds === null) for (const position of positions) last = position > last ? position : last;
  else
    for (let d = 1; d < bounds.length; d++) {
      const end = (bounds[d] as bigint) - (bounds[d - 1] as bigint) - 1n;
      last = end > last ? end : last;
    }
  return Number(last) + 1;
}

/** A language model: logits, and the loss of a batch. */
export class CausalLM extends Module {
  readonly model: Decoder;
  /** null: tied to the embedding. */
  readonly lmHead: Linear | null;
  /** Of the head, whichever matrix that is. */
  readonly headAdapter: Adapter | null = null;
  readonly config: ModelConfig;
  readonly device: Device;
  readonly dtype: DType;
  /** The Hugging Face folder that it was loaded from. */
  readonly sourceFolder: string | null;
  /** Called before each layer is enqueued. */
  onLayer: LayerHook | undefined = undefined;
  readonly #memory: Chosen = {
    tileMlp: 0,
    tileLoss: 0,
    checkpointEvery: 0,
    keepAttention: false,
    offload: "none",
    deviceBytes: 0,
    format: "native",
    directory: null,
    prefetch: true,
    headChunks: 1,
  };
  readonly #states: ModelStates;
  /** The parameters of the logits. */
  readonly #head: Unit;
  /** Each null where it is made for each batch, since it depends on its length. */
  readonly #frequencies: readonly (Frequencies | null)[];
  readonly #stepRouting: Routing | null;
  /** Calls that chose what adapters drop by themselves. */
  #draws = 0;
  /** By the names that namedParameters gives. */
  readonly #places: ReadonlyMap<string, Place>;

  /**
   * Parameters are undefined until they are loaded or initialised: use `loadModel` or `initModel`. zero: the ranks that
   * hold different tokens, which share its states.
   */
  constructor(
    config: ModelConfig,
    options: Omit<ModuleOptions, "spread"> & { sourceFolder?: string | null; zero?: ZeroOptions | null } = {},
  ) {
    super();
    const device = openDevice(options.device ?? "cpu");
    const dtype = options.dtype ?? "float32";
    this.config = config;
    this.device = device;
    this.dtype = dtype;
    this.sourceFolder = options.sourceFolder ?? null;
    const { tier = "device", zero = null } = options;
    const spread = zero !== null && zero.level > 0;
    const baseFormat = config.adapter?.baseFormat ?? null;
    const where = { device, dtype, tier, spread: spread || baseFormat !== null };
    this.model = new Decoder(config, where);
    this.lmHead = config.tieWordEmbeddings ? null : new Linear(config.hiddenSize, config.vocabSize, where);
    if (config.adapter) {
      try {
        const { hiddenSize: inFeatures, vocabSize: outFeatures } = config;
        this.headAdapter = attachAdapters(this, config.adapter, {
          parameters: [...super.namedParameters()],
          storedAs: (name) => this.#storedAs(name),
          tied: config.tieWordEmbeddings ? { inFeatures, outFeatures } : null,
          options: { ...where, spread },
        });
        if (baseFormat !== null) storeBase([...super.namedParameters()], baseFormat, spread);
      } catch (error) {
        super.dispose();
        throw error;
      }
    }
    this.#head = [this.#headWeight, ...(this.headAdapter?.parameters() ?? [])];
    this.#states = new ModelStates(this.#namedOnce(), {
      zero,
      units: [...this.model.units, this.#head],
      params: tier === "host" ? "host" : "none",
    });
    this.#stepRouting = config.experts && this.#makeRouting(config.experts);
    this.#frequencies = config.ropes.map((rope) => {
      if (ropeDependsOnLength(rope)) return null;
      const { inverseFrequencies, attentionFactor } = rotaryEmbedding(rope, config.rotaryDim);
      return { inverse: untracked(() => tensor(inverseFrequencies, { device, category: "params" })), attentionFactor };
    });
    this.#places = new Map(
      [...super.namedParameters()].map(([parameter, { shape }]) => {
        const stored = this.#storedAs(parameter);
        return [displayName(stored), { parameter, stored, shape }];
      }),
    );
  }

  #storedAs(parameter: string): Stored {
    return storedIn(this.config, parameter);
  }

  /** Names of the family's checkpoints; where a tensor of these is several parameters, with which part of it one is. */
  override *namedParameters(prefix = ""): Generator<[name: string, parameter: Parameter]> {
    for (const [name, parameter] of super.namedParameters())
      yield [prefix + displayName(this.#storedAs(name)), parameter];
  }

  /** Where the values of a parameter are stored, by its name. */
  place(name: string): Place {
    const place = this.#places.get(name);
    if (place === undefined) throw new ArgumentError(`the model has no parameter ${name}`);
    return place;
  }

  /** The same; undefined where there is none of that name. */
  findPlace(name: string): Place | undefined {
    return this.#places.get(name);
  }

  /** The first name of a parameter. */
  nameOf(parameter: Parameter): string {
    for (const [name, one] of this.namedParameters()) if (one === parameter) return name;
    throw new ArgumentError("nameOf: this is no parameter of the model");
  }

  /** Every parameter once, by its first name: a tied weight has two. */
  #namedOnce(): [string, Parameter][] {
    const seen = new Set<Parameter>();
    return [...this.namedParameters()].filter(([, parameter]) => !seen.has(parameter) && seen.add(parameter));
  }

  /** What this rank holds of the parameters, and updates: alone, each of them, once. */
  get owned(): Owned[] {
    return this.#states.owned;
  }

  /** What of it is trained. */
  get trained(): Owned[] {
    return this.owned.filter(({ leaf }) => leaf.requiresGrad);
  }

  /** Whether each rank holds shares of the parameters' states. */
  get isSpread(): boolean {
    return this.#states.spread;
  }

  /** How gradients and updates reach the other ranks, and what is lent; for a training loop. */
  get states(): Pick<ModelStates, "finishBackward" | "finishGradients" | "finishUpdate" | "gather" | "giveBack"> {
    return this.#states;
  }

  /** What lib/report counts operations from. */
  get shape(): ModelShape {
    const shape = modelShape(this.config);
    if (!this.config.adapter) return shape;
    // Weights of products alone: of norms and biases there is no count.
    const weights = this.#namedOnce().filter(([, { ndim }]) => ndim >= 2);
    const adapters = weights.filter(([name]) => isAdapterParameter(this.place(name).parameter));
    const sum = (list: typeof weights): number => list.reduce((total, [, { size }]) => total + size, 0);
    const trained = weights.filter(
      ([, parameter]) => parameter.requiresGrad && (parameter === this.#headWeight || !this.#isEmbedding(parameter)),
    );
    return { ...shape, adapterWeights: sum(adapters), trainedWeights: sum(trained) };
  }

  #isEmbedding(parameter: Parameter): boolean {
    return parameter === this.model.embedTokens.weight || parameter === this.model.embedPositions?.weight;
  }

  /** [V, H] */
  get #headWeight() {
    return this.lmHead === null ? this.model.embedTokens.weight : this.lmHead.weight;
  }

  /** How a step is cut up and what lives where; what is left out stays as it was. */
  configureMemory(options: MemoryOptions): void {
    if (options.states !== undefined) this.#states.configure(options.states);
    for (const key of ["tileMlp", "tileLoss", "checkpointEvery", "deviceBytes"] as const) {
      const rows = options[key];
      if (rows === undefined) continue;
      if (!Number.isSafeInteger(rows) || rows < 0)
        throw new ArgumentError(`configureMemory: ${key} is ${rows}, expected a whole number, 0 or more`);
      this.#memory[key] = rows;
    }
    this.#memory.keepAttention = options.keepAttention ?? this.#memory.keepAttention;
    this.#memory.offload = options.offload ?? this.#memory.offload;
    this.#memory.format = options.format ?? this.#memory.format;
    this.#memory.prefetch = options.prefetch ?? this.#memory.prefetch;
    if (options.directory !== undefined) this.#memory.directory = options.directory;
    if (options.headChunks !== undefined) {
      const { headChunks } = options;
      if (!Number.isSafeInteger(headChunks) || headChunks < 1)
        throw new ArgumentError(`configureMemory: headChunks is ${headChunks}, expected a whole number, 1 or more`);
      this.#memory.headChunks = headChunks;
    }
  }

  /** Most bytes of checkpoints so far that stayed on the device as they are. */
  get checkpointBytesOnDevice(): number {
    return this.model.checkpointBytesOnDevice;
  }

  /** Counts of the routing of a step, from zero, of a model with experts; of others null. It is the model's. */
  stepRouting(): Routing | null {
    this.#stepRouting?.clear();
    return this.#stepRouting;
  }

  #makeRouting(experts: ModelExperts): Routing {
    const { count, active, layers, auxiliaryCoefficient: coefficient } = experts;
    const sizes = { layers: layers.filter((has) => has).length, experts: count, active, coefficient };
    return new Routing(sizes, this.device);
  }

  /**
   * Runs a forward for the counts of `routing` alone: its load-balancing loss is formed of all micro-batches, so that a
   * backward can only follow when all are counted.
   */
  count(input: ModelInput, routing: Routing, call: Pick<ForwardCall, "dropoutSeed"> = {}): void {
    noGrad(() => scope(() => void this.hidden(input, { ...call, routing, record: true })));
  }

  /** The last hidden states, behind the final norm: [T, H]. record: whether these tokens are to be counted. */
  hidden(input: ModelInput, call: ForwardCall = {}): Tensor {
    return scope(() => this.#routed(input, call, this.#dropoutOf(input, call)));
  }

  #routed(input: ModelInput, { routing = null, record = false }: ForwardCall, dropout: StepDropout | null): Tensor {
    const run = (): Tensor => this.#hidden(input, routing, dropout);
    const counted = input.counted ?? Number.MAX_SAFE_INTEGER;
    return routing === null ? run() : routing.run(counted, record, run);
  }

  /** What adapters drop of a batch; null: nothing. */
  #dropoutOf(input: ModelInput, { dropoutSeed }: ForwardCall): StepDropout | null {
    if ((this.config.adapter?.dropout ?? 0) === 0) return null;
    const seed = dropoutSeed === undefined ? (isGradEnabled() ? this.#draws++ : null) : dropoutSeed;
    if (seed === null) return null;
    const { ids } = prepareInput(input, this.config.vocabSize);
    return { seed, rows: tensor(tokenNumbers(input, ids.length), { device: this.device, keepValues: false }) };
  }

  #hidden(
    input: ModelInput,
    routing: Routing | null,
    dropout: StepDropout | null,
    cache: CachedTokens | null = null,
  ): Tensor {
    return scope(() => {
      const { ids, positions, cuSeqlens, group } = prepareInput(input, this.config.vocabSize);
      const device = this.device;
      const ring = group?.ring ?? null;
      const length = this.#frequencies.includes(null) ? lengthOf(positions, ring !== null ? cuSeqlens : null) : 0;
      const layout: TokenLayout = {
        group: group?.ulysses ?? null,
        ring: ring && new RingLayout(ring, positions.length / 2, cuSeqlens),
        positions: tensor(positions, { device, keepValues: false }),
        frequencies: this.#frequencies.map((set, i) => set ?? this.#frequenciesOf(i, length)),
        // With a cache attention goes sequence by sequence.
        cuSeqlens: cuSeqlens.length > 2 && cache === null ? tensor(cuSeqlens, { device }) : null,
        dropout,
      };
      const options = {
        ...this.#memory,
        states: this.#states,
        head: this.#head,
        onLayer: this.onLayer,
        gradientMask: this.#gradientMask(ids),
        learned: this.config.learnedPositions ? this.#learned(ids.length, positions, group) : null,
        routing,
        cache,
      };
      return this.model.forward(tensor(ids, { device }), layout, options);
    });
  }

  /** Set number `i` for a batch of documents of up to `length` tokens. */
  #frequenciesOf(i: number, length: number): Frequencies {
    const { ropes, rotaryDim } = this.config;
    const { inverseFrequencies, attentionFactor } = rotaryEmbedding(ropes[i] as RopeParameters, rotaryDim, length);
    return { inverse: tensor(inverseFrequencies, { device: this.device }), attentionFactor };
  }

  /** [S] int32, the positions of this rank's tokens among those that its group sees. */
  #learned(tokens: number, positions: BigInt64Array, group: SequenceGroup | null): Tensor {
    const { maxPositionEmbeddings: most, file } = this.config;
    const first = (group?.ulysses?.rank ?? 0) * tokens;
    const own = Int32Array.from({ length: tokens }, (_, i) => Number(positions[first + i]));
    // A plan asks for lengths that no document has.
    const beyond = this.device.isMeta ? undefined : own.find((position) => position < 0 || position >= most);
    if (beyond !== undefined)
      throw new ArgumentError(
        `a token is at position ${beyond}, and ${file} has learned positions up to ${most - 1}; give documents of at ` +
          `most ${most} tokens (data.overlong: split or truncate)`,
        { position: beyond, most },
      );
    return tensor(own, { device: this.device });
  }

  /** What becomes of logits: they stay, or are capped. */
  #capped(logits: Tensor): Tensor {
    const { logitSoftcap: cap } = this.config;
    return cap === null ? logits : scale(unary(scale(logits, 1 / cap), "tanh"), cap);
  }

  /** [T, 1], 0 at padding tokens: transformers trains no embedding row of theirs. null where the model has none. */
  #gradientMask(ids: Int32Array): Tensor | null {
    const padding = this.config.padTokenId;
    if (padding === null || !isGradEnabled() || !this.model.embedTokens.weight.requiresGrad) return null;
    // Also where no token is padding: what a step takes does not depend on its tokens.
    const mask = new Float32Array(ids.length).fill(1);
    for (let i = ids.indexOf(padding); i >= 0; i = ids.indexOf(padding, i + 1)) mask[i] = 0;
    return tensor(mask, { device: this.device, shape: [ids.length, 1] });
  }

  /**
   * Logits [T, V] of tokens laid end to end; each row of `inputIds` is a document of its own. rows: [begin, end), the
   * tokens whose logits are made; default: all.
   */
  forward(input: ModelInput, { rows }: { rows?: readonly [begin: number, end: number] } = {}): Tensor {
    return scope(() => {
      const dropout = this.#dropoutOf(input, {});
      const hidden_TH = this.#routed(input, {}, dropout);
      if (rows === undefined) return this.#logits(hidden_TH, dropout);
      const [begin, end] = rows;
      const [tokens] = hidden_TH.shape as [number];
      if (![begin, end].every(Number.isSafeInteger) || begin < 0 || end <= begin || end > tokens)
        throw new ArgumentError(`forward: rows is [${begin}, ${end}], expected [begin, end] within 0 and ${tokens}`);
      const part = dropout && { ...dropout, rows: narrow(dropout.rows, 0, begin, end - begin) };
      return this.#logits(narrow(hidden_TH, 0, begin, end - begin), part);
    });
  }

  /**
   * The loss (natural log) of each token's target as the parameters are: [T] float64, 0 where it has none. Without a
   * backward and without dropout; a batch's part of a sequence gives its own tokens' losses.
   */
  tokenLosses(batch: LossInput): Tensor {
    const { targets } = prepareTargets(batch, this.config.vocabSize);
    return noGrad(() =>
      scope(() => {
        const hidden_TH = this.#routed(batch, {}, null);
        const targets_T = tensor(targets, { device: this.device });
        const adapter = this.headAdapter?.lowRank(null) ?? null;
        const how = { rows: this.#memory.tileLoss, softcap: this.config.logitSoftcap, adapter };
        return this.#withHead((weight) => linearTokenLosses(hidden_TH, weight, targets_T, how));
      }),
    );
  }

  /** [rows, V] of hidden states [rows, H] */
  #logits(hidden_TH: Tensor, dropout: StepDropout | null): Tensor {
    return this.#withHead((weight) => {
      const logits = linear(hidden_TH, weight, null);
      const added = this.headAdapter?.forward(hidden_TH, dropout);
      return this.#capped(added === undefined ? logits : add(logits, added));
    });
  }

  /** Room for the keys and values of `sequences` of up to `capacity` tokens each, for `extend`. OutOfMemoryError. */
  keyValueCache(options: { sequences?: number; capacity: number }): KeyValueCache {
    if (typeof options !== "object" || options === null)
      throw new ArgumentError("keyValueCache: expected options of {capacity, sequences?}");
    const { sequences = 1, capacity } = options;
    return new KeyValueCache({ ...this.#cacheSizes, sequences, capacity });
  }

  get #cacheSizes() {
    const { numLayers: layers, numKeyValueHeads: kvHeads, headDim } = this.config;
    const { device, dtype } = this;
    return { layers, kvHeads, headDim, device, dtype };
  }

  /**
   * Tokens behind those of a cache, to which they are added: `rows[i]` to sequence `sequences[i]` (by default i). The
   * logits [rows, V] of the last token of each. Without a backward. Keys stay turned as they were: where the positions of
   * the longer sequence are others (see `turnsAlike`), begin with an empty cache.
   */
  extend(
    rows: readonly Integers[],
    cache: KeyValueCache,
    sequences: readonly number[] = rows.map((_, i) => i),
  ): Tensor {
    if (!(cache instanceof KeyValueCache)) throw new ArgumentError("extend: expected the cache of keyValueCache()");
    cache.require(this.#cacheSizes);
    const counts = Array.isArray(rows) ? rows.map((row) => row?.length ?? 0) : [];
    if (counts.length === 0 || counts.includes(0))
      throw new ArgumentError("extend: expected a list with at least one token of each sequence");
    if (sequences.length !== counts.length)
      throw new ArgumentError(
        `extend: got tokens of ${counts.length} sequences, but ${sequences.length} numbers of sequences`,
      );
    return noGrad(() =>
      scope(() =>
        cache.extend(sequences, counts, (tokens) => {
          const positions = tokens.spans.flatMap(({ begin, rows: count }) =>
            Array.from({ length: count }, (_, i) => begin + i),
          );
          const hidden_TH = this.#hidden({ inputIds: rows, positions }, null, null, tokens);
          return this.#logits(lastRows(hidden_TH, tokens.spans), null);
        }),
      ),
    );
  }

  /** The tokens that would follow a prompt, or each of several, as they are chosen. See `GenerateOptions`. */
  generate(
    prompts: Integers | readonly Integers[],
    options: GenerateOptions = {},
  ): AsyncGenerator<GeneratedToken, void, undefined> {
    return generate(this, prompts, options);
  }

  /** Whether the frequencies of rotary positions depend on how long a document is. */
  get positionsDependOnLength(): boolean {
    return this.#frequencies.includes(null);
  }

  /** Whether documents of these lengths have the same frequencies. */
  turnsAlike(length: number, other: number): boolean {
    const { ropes, rotaryDim } = this.config;
    return ropes.every((rope) => {
      const [one, two] = [length, other].map((tokens) => rotaryEmbedding(rope, rotaryDim, tokens));
      return (
        one?.attentionFactor === two?.attentionFactor &&
        one?.inverseFrequencies.every((value, i) => value === two?.inverseFrequencies[i])
      );
    });
  }

  /**
   * Sum of the token losses (natural log) over `denominator`, a float64 scalar. denominator: the valid labels of the
   * whole step; by default those of this batch. Labels of -100 and the last token of each document count for nothing.
   * routing: of a step whose load-balancing loss the caller adds, with `record` as in `hidden`; null: tokens are not
   * counted. By default the batch's own load-balancing loss is added where the model has one.
   */
  loss(batch: LossInput, options: { denominator?: number } & ForwardCall = {}): Tensor {
    if (options.routing === undefined && (this.config.experts?.auxiliaryCoefficient ?? 0) > 0)
      return this.#balancedLoss(batch, options);
    const { targets, validTokens } = prepareTargets(batch, this.config.vocabSize);
    const denominator = options.denominator ?? Math.max(1, validTokens);
    if (!(denominator > 0 && Number.isFinite(denominator)))
      throw new ArgumentError(`loss: denominator is ${denominator}, expected a number above 0`);
    return scope(() => {
      const dropout = this.#dropoutOf(batch, options);
      const hidden_TH = this.#routed(batch, options, dropout);
      const targets_T = tensor(targets, { device: this.device });
      const softcap = this.config.logitSoftcap;
      const adapter = this.headAdapter?.lowRank(dropout) ?? null;
      const how = { denominator, softcap, rows: this.#memory.tileLoss, consumeHidden: true, adapter };
      return this.#withHead((weight) => linearCrossEntropy(hidden_TH, weight, targets_T, how));
    });
  }

  /** The loss of a batch for itself, its load-balancing loss included. */
  #balancedLoss(batch: LossInput, options: { denominator?: number } & ForwardCall): Tensor {
    const routing = this.#makeRouting(this.config.experts as ModelExperts);
    let total: Tensor | undefined;
    try {
      total = scope(() => {
        const loss = this.loss(batch, { ...options, routing, record: true });
        routing.complete(batch.group?.all ?? null);
        return routing.addTo(loss, { dispose: true });
      });
      return total;
    } finally {
      // With a graph it is needed until the backward is over.
      if (total?.node === undefined || total.node === null) routing.dispose();
    }
  }

  /** Runs what reads the head's weight [V, H], the last parameters before the backward. */
  #withHead<T>(fn: (weight: Parameter) => T): T {
    const next = isGradEnabled() ? this.model.firstBackward(this.#memory.checkpointEvery) : undefined;
    return this.#states.use(this.#head, next, () => fn(this.#headWeight));
  }

  override dispose(): void {
    this.#states.dispose();
    this.#stepRouting?.dispose();
    super.dispose();
    for (const set of this.#frequencies) set?.inverse.dispose();
  }
}
