// The attention half of a layer, x + Attention(norm(x)), in chunks of query heads and tiles of rows (ALST): of q, k, v
// and their gradients there is one chunk at a time, and the gradient of q overwrites attention's output.
import { type Context, Function, type Grad, owned, type WeightGrad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { attentionKeeper } from "../ops/attention.js";
import { axpbyInto } from "../ops/axpby.js";
import { copyInto } from "../ops/copy.js";
import {
  addBack,
  addLow,
  addLowRank,
  emptyLow,
  type LowRank,
  type LowRankKind,
  lowOf,
  lowRankGradients,
  lowRankOf,
  withRows,
} from "../ops/low_rank.js";
import { addRowSums, matmulInto, matmulTransposed } from "../ops/matmul.js";
import { type NormKind, normBackwardInto, normInto } from "../ops/norm.js";
import type { Communicator } from "../parallel/communicator.js";
import { scope } from "../tensor/scope.js";
import { produce, Tensor } from "../tensor/tensor.js";
import { eachStretch, eachTile } from "./each_tile.js";
import type { LayerCache } from "./key_value_cache.js";
import { Ring, type RingLayout } from "./ring.js";
import { Ulysses } from "./ulysses.js";

const projections = ["q", "k", "v", "o"] as const;
type Projection = (typeof projections)[number];

/** The parameters; N query heads, K key/value heads of size D. */
export interface AttentionWeights extends Partial<Adapters> {
  /** [H] of the norm before; null: there is none. */
  readonly norm: Tensor | null;
  readonly normBias: Tensor | null;
  /** [N D, H] */
  readonly q: Tensor;
  /** [K D, H] */
  readonly k: Tensor;
  /** [K D, H] */
  readonly v: Tensor;
  /** [H, N D] */
  readonly o: Tensor;
  readonly qBias: Tensor | null;
  readonly kBias: Tensor | null;
  readonly vBias: Tensor | null;
  readonly oBias: Tensor | null;
  /** [D] of the norms over each head of q and of k; [N D] and [K D] of those over all heads. */
  readonly qNorm: Tensor | null;
  readonly kNorm: Tensor | null;
  /** [H] of the norm behind the last product. */
  readonly outNorm: Tensor | null;
  /** [S] int64, the numbers of x's rows for what adapters drop; absent or null: they drop nothing. */
  readonly rows?: Tensor | null;
}

/** Adapters of the projections: A [r, I] and B [O, r]; null: there is none. */
type Adapters = Readonly<Record<`${Projection}${"A" | "B"}`, Tensor | null>>;

const names = [
  "norm",
  "normBias",
  "q",
  "k",
  "v",
  "o",
  "qBias",
  "kBias",
  "vBias",
  "oBias",
  "qNorm",
  "kNorm",
  "outNorm",
  "qA",
  "qB",
  "kA",
  "kB",
  "vA",
  "vB",
  "oA",
  "oB",
  "rows",
] as const;
/** Arguments before the first weight: the options and x. */
const FIRST = 2;

export interface AttentionChunksOptions {
  /** N */
  readonly heads: number;
  /** K */
  readonly kvHeads: number;
  /** D */
  readonly headDim: number;
  /** The norm before the projections; null: they read x itself. */
  readonly norm: NormKind | null;
  /** The norms of q and k, and whether each takes all heads of a token together. */
  readonly headNorm: (NormKind & { readonly acrossHeads: boolean }) | null;
  /** The norm behind the last product, before that is added to x. */
  readonly outNorm: NormKind | null;
  /** Default: there are none. */
  readonly adapters?: Readonly<Record<Projection, LowRankKind | null>>;
  /** Factor on q.k. */
  readonly scale: number;
  /** Scores become softcap * tanh(score / softcap); 0: they stay. */
  readonly softcap: number;
  /** Token i sees j iff 0 <= i - j < window; 0: all before it. */
  readonly window: number;
  /** Ranks that exchange tokens for heads; absent: this one has all heads. */
  readonly group?: Communicator | null;
  /** Ranks between which keys and values go round; absent: each has those of all tokens. T is then what this one has. */
  readonly ring?: RingLayout | null;
  /** Keys and values of tokens before these, to which theirs are added; absent: there are none. Without a backward. */
  readonly cache?: LayerCache | null;
  /** [T] int64 */
  readonly positions: Tensor;
  /** [dims that turn / 2] float32, the first dims of each head; null: q and k are not turned. */
  readonly inverseFrequencies: Tensor | null;
  /** Of cos and sin. */
  readonly attentionFactor: number;
  /** [documents + 1] int64; null: all tokens are one document. */
  readonly cuSeqlens: Tensor | null;
  /** Chunks of query heads, lowered to the nearest divisor of those that a rank holds. */
  readonly chunks: number;
  /** Rows (tokens) of a tile; 0: all. */
  readonly rows: number;
}

/** Query heads of a chunk that one call of attention takes: whole groups, or some heads of a single group. */
interface Run {
  readonly head: number;
  readonly heads: number;
  /** Key/value heads, from `group` on. */
  readonly group: number;
  readonly groups: number;
  /** Keys and values are made with the first head of a group and stay until its last. */
  readonly opens: boolean;
  readonly closes: boolean;
}

interface Chunk {
  readonly head: number;
  readonly heads: number;
  readonly runs: readonly Run[];
}

/** The greatest divisor of `total` that is at most `bound`. */
export function nearestDivisor(total: number, bound: number): number {
  let divisor = Math.min(total, Math.max(1, bound));
  while (total % divisor !== 0) divisor--;
  return divisor;
}

/** `chunks` equal parts of N query heads, each cut at the bounds of groups. */
export function headChunks(heads: number, kvHeads: number, chunks: number): Chunk[] {
  const size = heads / chunks;
  const group = heads / kvHeads;
  return Array.from({ length: chunks }, (_, chunk) => {
    const runs: Run[] = [];
    const end = (chunk + 1) * size;
    for (let head = chunk * size; head < end; ) {
      const inside = head % group;
      const whole = inside === 0 ? Math.floor((end - head) / group) : 0;
      const count = whole > 0 ? whole * group : Math.min(end - head, group - inside);
      runs.push({
        head,
        heads: count,
        group: Math.floor(head / group),
        groups: Math.max(1, whole),
        opens: inside === 0,
        closes: (head + count) % group === 0,
      });
      head += count;
    }
    return { head: chunk * size, heads: size, runs };
  });
}

const rowsOf = (x: Tensor, start: number, length: number): Tensor =>
  x.viewOf([length, ...x.shape.slice(1)], x.strides, start * (x.strides[0] as number));

const columnsOf = (x: Tensor, start: number, length: number): Tensor =>
  x.viewOf([x.shape[0] as number, length], x.strides, start * (x.strides[1] as number));

/** Columns of [T, heads * D] as [T, count, D]. */
const headsOf = (x: Tensor, head: number, count: number, headDim: number): Tensor =>
  x.viewOf([x.shape[0] as number, count, headDim], [x.strides[0] as number, headDim, 1], head * headDim);

/** Heads of q or k: what attention reads, and, where a norm makes that of it, the projection. */
interface Heads {
  readonly raw: Tensor | null;
  readonly turned: Tensor;
}

/** Keys and values of some groups, with the float32 sums of their gradients where several chunks add to them. */
interface Panel {
  readonly k: Heads;
  readonly v: Tensor;
  readonly sums: { readonly dk: Tensor; readonly dv: Tensor } | null;
}

/** Where the gradients of a panel's keys and values go. */
interface PanelGradients {
  readonly dk: Tensor;
  readonly dv: Tensor;
}

function disposeHeads(heads: Heads): void {
  heads.raw?.dispose();
  heads.turned.dispose();
}

function disposePanel(panel: Panel): void {
  disposeHeads(panel.k);
  panel.v.dispose();
  panel.sums?.dk.dispose();
  panel.sums?.dv.dispose();
}

/** The steps that forward and backward share. Big tensors belong to the caller, views to a scope of each step. */
class Half {
  readonly chunks: readonly Chunk[];
  readonly ulysses: Ulysses;
  readonly #ring: Ring | null;
  readonly #x: Tensor;
  readonly #w: AttentionWeights;
  readonly #options: AttentionChunksOptions;

  constructor(x: Tensor, weights: AttentionWeights, options: AttentionChunksOptions) {
    this.#x = x;
    this.#w = weights;
    this.#options = options;
    this.ulysses = new Ulysses(options.group ?? null, options.heads, options.kvHeads);
    const { headDim, window, scale, softcap, ring = null } = options;
    // A view of cuSeqlens is made in each step.
    this.#ring =
      ring === null ? null : new Ring({ layout: ring, headDim, window, scale, softcap, cuSeqlens: options.cuSeqlens });
    const { heads, kvHeads } = this.ulysses;
    this.chunks = headChunks(heads, kvHeads, nearestDivisor(heads, options.chunks));
  }

  /** [S, columns] */
  empty(columns: number): Tensor {
    return Tensor.empty([this.#x.shape[0] as number, columns], { device: this.#x.device, dtype: this.#x.dtype });
  }

  /** [T, columns], of own heads. */
  emptyHeads(columns: number, dtype = this.#x.dtype): Tensor {
    return Tensor.empty([this.ulysses.size * (this.#x.shape[0] as number), columns], { device: this.#x.device, dtype });
  }

  /** [P S, columns], what goes to the ranks of the heads: for each its S rows. */
  emptyParcel(columns: number): Tensor {
    return this.ulysses.parcel(this.#x.shape[0] as number, columns, this.#x.device, this.#x.dtype);
  }

  /** Numbers for each head and token lie in so many parts of the tokens. */
  get stretches(): number {
    return this.#ring === null ? 1 : 2;
  }

  /** [heads of a rank, T]; of a ring [2, heads, T / 2] */
  emptyLse(): Tensor {
    const { heads, size } = this.ulysses;
    return Tensor.empty([heads, size * (this.#x.shape[0] as number)], { device: this.#x.device, dtype: "float32" });
  }

  /** For each rank its S rows of [P S, C]. */
  eachOwner(buffer: Tensor, use: (rows: Tensor, owner: number) => void): void {
    const rows = this.#x.shape[0] as number;
    for (let owner = 0; owner < this.ulysses.size; owner++) use(rowsOf(buffer, owner * rows, rows), owner);
  }

  /** Calls `use` with each tile of rows, x there, and what the projections read: norm(x), or x where there is none. */
  eachTile(use: (normed: Tensor, start: number, length: number, x: Tensor) => void): void {
    const { device, dtype, shape } = this.#x;
    const { norm } = this.#options;
    eachTile(device, shape[0] as number, this.#options.rows, ({ start, length }) => {
      const x = rowsOf(this.#x, start, length);
      if (norm === null) {
        use(x, start, length, x);
        return;
      }
      const normed = Tensor.empty(x.shape, { device, dtype });
      normInto(norm, { weight: this.#w.norm as Tensor, bias: this.#w.normBias }, x, normed);
      use(normed, start, length, x);
    });
  }

  /** The adapter of a projection, of all rows. */
  adapter(of: Projection): LowRank | null {
    const w = this.#w;
    return lowRankOf(this.#options.adapters?.[of], w[`${of}A`], w[`${of}B`], w.rows);
  }

  /** Calls `use` with each tile of rows, and the adapter of a projection there. */
  eachTileOf(adapter: LowRank | null, use: (part: LowRank, start: number, length: number) => void): void {
    if (adapter === null) return;
    eachTile(this.#x.device, this.#x.shape[0] as number, this.#options.rows, ({ start, length }) =>
      withRows(adapter, start, length, (part) => use(part, start, length)),
    );
  }

  /** The kind of the norms over each head; null: there are none, or each takes all heads of a token. */
  get perHead(): NormKind | null {
    const { headNorm } = this.#options;
    return headNorm === null || headNorm.acrossHeads ? null : headNorm;
  }

  /** The kind of the norms over all heads of a token. */
  get acrossHeads(): NormKind | null {
    const { headNorm } = this.#options;
    return headNorm?.acrossHeads ? headNorm : null;
  }

  /** Calls `body` with each chunk; those that begin and end with whole groups of heads are alike. */
  eachChunk(body: (chunk: Chunk) => void): void {
    const { chunks } = this;
    const whole = 1 + chunks.findIndex(({ runs }) => runs.at(-1)?.closes);
    eachStretch(this.#x.device, chunks.length, whole, ({ start, length }) =>
      chunks.slice(start, start + length).forEach(body),
    );
  }

  /**
   * Query heads of a chunk, and keys and values of the groups that open with it. keep: projections stay beside what a
   * norm over heads makes of them. A panel whose group goes on in other chunks gets sums for its gradient.
   */
  project(chunk: Chunk, keep: boolean): { q: Heads; panels: Map<Run, Panel> } {
    const { headDim: D } = this.#options;
    const w = this.#w;
    const { ulysses } = this;
    const forQ = this.emptyParcel(chunk.heads * D);
    const forKv = chunk.runs
      .filter((run) => run.opens)
      .map((run) => ({ run, k: this.emptyParcel(run.groups * D), v: this.emptyParcel(run.groups * D) }));
    const across = this.acrossHeads;
    this.eachTile((normed, start, length) => {
      const lowOfTile = (of: Projection): { adapter: LowRank; low: Tensor } | null => {
        const adapter = this.adapter(of);
        let low: Tensor | undefined;
        if (adapter)
          withRows(adapter, start, length, (part) => {
            low = lowOf(normed, part);
          });
        return adapter && { adapter, low: low as Tensor };
      };
      const into = (
        [of, weight, bias, norm]: readonly [Projection, Tensor, Tensor | null, Tensor | null],
        headOf: (owner: number) => number,
        out: Tensor,
      ): void => {
        const columns = out.shape[1] as number;
        const made = lowOfTile(of);
        if (across === null || norm === null) {
          this.eachOwner(out, (rows, owner) => {
            const first = headOf(owner) * D;
            const to = rowsOf(rows, start, length);
            matmulInto(normed, transposedRows(weight, first, columns), to, {
              bias: bias?.viewOf([columns], bias.strides, first * (bias.strides[0] as number)) ?? null,
            });
            if (made) addLow(made.low, made.adapter, to, first);
          });
          return;
        }
        // A norm over all heads needs the projection to all of them, whichever are wanted here.
        const wide = weight.shape[0] as number;
        const inPlace = columns === wide && ulysses.size === 1;
        const whole = inPlace ? rowsOf(out, start, length) : this.#rows(length, wide);
        matmulInto(normed, transposedRows(weight, 0, wide), whole, { bias });
        if (made) addLow(made.low, made.adapter, whole);
        normInto(across, { weight: norm, bias: null }, whole, whole);
        if (!inPlace)
          this.eachOwner(out, (rows, owner) => {
            copyInto(columnsOf(whole, headOf(owner) * D, columns), rowsOf(rows, start, length));
          });
      };
      into(["q", w.q, w.qBias, w.qNorm], (owner) => ulysses.firstHead(owner) + chunk.head, forQ);
      for (const { run, k, v } of forKv) {
        const headOf = (owner: number): number => ulysses.firstKvHead(owner) + run.group;
        into(["k", w.k, w.kBias, w.kNorm], headOf, k);
        into(["v", w.v, w.vBias, null], headOf, v);
      }
    });
    const q = ulysses.toHeads(forQ);
    const opening = forKv.map(({ run, k, v }) => ({ run, k: ulysses.toHeads(k), v: ulysses.toHeads(v) }));
    const panels = new Map<Run, Panel>();
    for (const { run, k, v } of opening) {
      const sums =
        keep && !run.closes && this.#x.dtype !== "float32"
          ? { dk: this.emptyHeads(run.groups * D, "float32"), dv: this.emptyHeads(run.groups * D, "float32") }
          : null;
      panels.set(run, { k: this.turn(k, w.kNorm, keep), v, sums });
    }
    return { q: this.turn(q, w.qNorm, keep), panels };
  }

  /** [rows, columns], of own tokens. */
  #rows(rows: number, columns: number): Tensor {
    return Tensor.empty([rows, columns], { device: this.#x.device, dtype: this.#x.dtype });
  }

  /** A projection that was saved (as it came, where a norm over each head follows), as what attention reads. */
  again(saved: Tensor, norm: Tensor | null): Heads {
    const own = saved.alias();
    return norm && this.perHead ? this.turn(own, norm, true) : { raw: null, turned: own };
  }

  /** Norm over each head and rotation of a projection, in place unless it is to be kept. */
  turn(raw: Tensor, norm: Tensor | null, keep: boolean): Heads {
    const { headDim: D, positions, inverseFrequencies, attentionFactor } = this.#options;
    const kind = norm && this.perHead;
    const count = (raw.shape[1] as number) / D;
    const turned = kind && keep ? this.emptyHeads(count * D) : raw;
    scope(() => {
      const to = headsOf(turned, 0, count, D);
      if (kind) normInto(kind, { weight: norm as Tensor, bias: null }, headsOf(raw, 0, count, D), to);
      const at = to.native();
      if (inverseFrequencies)
        binding.ops.rope(at, positions.native(), inverseFrequencies.native(), at, attentionFactor, false);
    });
    return { raw: turned === raw ? null : raw, turned };
  }

  /** The gradient of a projection from that of what `turn` made of it, in place. */
  turnBack(gradient: Tensor, from: Heads, norm: Tensor | null, dnorm: WeightGrad | null): void {
    const { headDim: D, positions, inverseFrequencies, attentionFactor } = this.#options;
    scope(() => {
      const count = (from.turned.shape[1] as number) / D;
      const dx = headsOf(gradient, 0, count, D);
      const at = dx.native();
      if (inverseFrequencies)
        binding.ops.rope(at, positions.native(), inverseFrequencies.native(), at, attentionFactor, true);
      if (!norm || !this.perHead || !from.raw) return;
      const x = headsOf(from.raw, 0, count, D);
      const grads = { weight: dnorm, bias: null };
      normBackwardInto(this.perHead, { weight: norm, bias: null }, { x, dy: dx, dx, accumulate: false }, grads);
    });
  }

  /** o: the chunk's columns. */
  attend(run: Run, chunk: Chunk, q: Tensor, panel: Panel, o: Tensor, lse: Tensor): void {
    const { headDim: D, cuSeqlens, window, scale, softcap } = this.#options;
    if (this.#ring !== null) {
      const columns = { head: run.head - chunk.head, heads: run.heads };
      this.#ring.attend(q, panel.k.turned, panel.v, o, lse, columns, run.head);
      return;
    }
    if (this.#options.cache) {
      this.#attendCached(run, chunk, q, panel, o, this.#options.cache);
      return;
    }
    scope(() => {
      binding.ops.attention(
        headsOf(q, run.head - chunk.head, run.heads, D).native(),
        headsOf(panel.k.turned, 0, run.groups, D).native(),
        headsOf(panel.v, 0, run.groups, D).native(),
        headsOf(o, run.head - chunk.head, run.heads, D).native(),
        rowsOf(lse, run.head, run.heads).native(),
        cuSeqlens?.native() ?? null,
        scale,
        true,
        window,
        0,
        0,
        softcap,
      );
    });
  }

  /** The same behind the tokens of a cache, sequence by sequence. */
  #attendCached(run: Run, chunk: Chunk, q: Tensor, panel: Panel, o: Tensor, cache: LayerCache): void {
    const { headDim: D, window, scale, softcap } = this.#options;
    const { device } = this.#x;
    for (const { sequence, row, rows, begin } of cache.spans)
      scope(() => {
        const first = sequence * cache.capacity;
        const seen = (of: Tensor): Tensor => headsOf(rowsOf(of, first, begin + rows), run.group, run.groups, D);
        const [k, v] = [seen(cache.k), seen(cache.v)];
        if (run.opens)
          for (const [made, all] of [
            [panel.k.turned, k],
            [panel.v, v],
          ] as const)
            copyInto(rowsOf(headsOf(made, 0, run.groups, D), row, rows), rowsOf(all, begin, rows));
        const own = (of: Tensor): Tensor => rowsOf(headsOf(of, run.head - chunk.head, run.heads, D), row, rows);
        const lse = Tensor.empty([run.heads, rows], { device, dtype: "float32" });
        binding.ops.attention(
          own(q).native(),
          k.native(),
          v.native(),
          own(o).native(),
          lse.native(),
          null,
          scale,
          true,
          window,
          begin,
          0,
          softcap,
        );
      });
  }

  /** q, o, delta, dout and dq are the chunk's; dq may be o. dk and dv: where those of the run's groups go, or are added to. */
  attendBack(
    run: Run,
    chunk: Chunk,
    given: { q: Tensor; panel: Panel; o: Tensor; delta: Tensor | null; lse: Tensor; dout: Tensor },
    into: PanelGradients & { dq: Tensor; accumulate: boolean },
  ): void {
    const { headDim: D, cuSeqlens, window, scale, softcap } = this.#options;
    if (this.#ring !== null) {
      const { q, panel, lse, delta, dout } = given;
      this.#ring.attendBack(
        { q, k: panel.k.turned, v: panel.v, lse, lseHead: run.head, delta: delta as Tensor, dout },
        into,
        { head: run.head - chunk.head, heads: run.heads },
      );
      return;
    }
    scope(() => {
      binding.ops.attentionBackward(
        headsOf(given.q, run.head - chunk.head, run.heads, D).native(),
        headsOf(given.panel.k.turned, 0, run.groups, D).native(),
        headsOf(given.panel.v, 0, run.groups, D).native(),
        headsOf(given.o, run.head - chunk.head, run.heads, D).native(),
        rowsOf(given.lse, run.head, run.heads).native(),
        headsOf(given.dout, run.head - chunk.head, run.heads, D).native(),
        given.delta === null ? null : rowsOf(given.delta, run.head - chunk.head, run.heads).native(),
        headsOf(into.dq, run.head - chunk.head, run.heads, D).native(),
        headsOf(into.dk, 0, run.groups, D).native(),
        headsOf(into.dv, 0, run.groups, D).native(),
        cuSeqlens?.native() ?? null,
        scale,
        true,
        window,
        0,
        0,
        false,
        into.accumulate,
        given.q.device.deterministic,
        softcap,
      );
    });
  }
}

/** Rows of a weight [O, I] as [I, rows]. */
const transposedRows = (weight: Tensor, start: number, length: number): Tensor => {
  const [row, column] = weight.strides as [number, number];
  return weight.viewOf([weight.shape[1] as number, length], [column, row], start * row);
};

class AttentionChunks extends Function<[AttentionChunksOptions, Tensor, ...(Tensor | null)[]], Tensor> {
  readonly name = "attention_chunks";

  forward(ctx: Context, options: AttentionChunksOptions, x: Tensor, ...list: (Tensor | null)[]): Tensor {
    return scope(() => {
      const weights = Object.fromEntries(
        names.map((name, i) => [name, list[i] ?? null]),
      ) as unknown as AttentionWeights;
      const { heads: N, headDim: D } = options;
      const half = new Half(x, weights, options);
      const keeper = attentionKeeper();
      const kept = keeper?.replay();
      const o = kept?.o ?? half.empty(N * D);
      const lse = kept?.lse ?? half.emptyLse();
      // With chunks, or with attention's results from before, the projections are made again in the backward.
      let saved: (Tensor | null)[] = [];
      if (!kept) {
        const keep = ctx.recording && half.chunks.length === 1;
        let open: Panel | undefined;
        half.eachChunk((chunk) => {
          const { q, panels } = half.project(chunk, keep);
          const part = half.ulysses.share(o, chunk.head * D, chunk.heads * D);
          for (const run of chunk.runs) {
            const panel = panels.get(run) ?? (open as Panel);
            half.attend(run, chunk, q.turned, panel, part, lse);
            open = panel;
            // A norm's result is made again from the projection.
            if (keep) saved = [q.raw ?? q.turned, panel.k.raw ?? panel.k.turned, panel.v];
            ctx.save(...saved);
            if (run.closes) disposePanel(panel);
          }
          disposeHeads(q);
          half.ulysses.collect(part, o, (owner) => (half.ulysses.firstHead(owner) + chunk.head) * D);
        });
        keeper?.record(o, lse);
      }
      ctx.save(x, o, lse, ...list);
      const { positions, inverseFrequencies, cuSeqlens } = options;
      ctx.save(positions, inverseFrequencies, cuSeqlens);
      ctx.values = { options, projected: saved.length > 0, present: list.map((weight) => weight !== null) };
      const y = produce(
        x.shape,
        { device: x.device, dtype: x.dtype },
        [x, o, ...(["o", "oBias", "outNorm", "oA", "oB", "rows"] as const).map((name) => weights[name] ?? null)],
        (from, by, w, b, behind, oA, oB, rows) => {
          const y = Tensor.empty(x.shape, { device: x.device, dtype: x.dtype });
          const across = transposedRows(w as Tensor, 0, x.shape[1] as number);
          const addAdapter = (): void => {
            const adapter = lowRankOf(options.adapters?.o, oA, oB, rows);
            half.eachTileOf(adapter, (part, start, length) =>
              addLowRank(rowsOf(by as Tensor, start, length), part, rowsOf(y, start, length)),
            );
          };
          if (options.outNorm === null) {
            copyInto(from as Tensor, y);
            matmulInto(by as Tensor, across, y, { bias: b ?? null, accumulate: true });
            addAdapter();
          } else {
            matmulInto(by as Tensor, across, y, { bias: b ?? null });
            addAdapter();
            normInto(options.outNorm, { weight: behind as Tensor, bias: null }, y, y);
            axpbyInto(from as Tensor, y, { beta: 1 });
          }
          across.dispose();
          return y;
        },
      );
      // What was kept belongs to no scope.
      o.dispose();
      lse.dispose();
      return y;
    });
  }

  backward(ctx: Context, dy: Tensor): Grad[] {
    return scope(() => this.#backward(ctx, dy));
  }

  #backward(ctx: Context, dy: Tensor): Grad[] {
    const { projected, present } = ctx.values as { projected: boolean; present: boolean[] };
    let at = 0;
    const next = (): Tensor => ctx.saved(at++);
    const made = projected ? { q: next(), k: next(), v: next() } : null;
    const x = next();
    const outputIndex = at;
    const [o, lse] = [next(), next()];
    const list = present.map((there) => (there ? next() : null));
    const weights = Object.fromEntries(names.map((name, i) => [name, list[i]])) as unknown as AttentionWeights;
    const given = ctx.values.options as AttentionChunksOptions;
    const options = {
      ...given,
      positions: next(),
      inverseFrequencies: given.inverseFrequencies === null ? null : next(),
      cuSeqlens: given.cuSeqlens === null ? null : next(),
    };
    const { heads: N, kvHeads: K, headDim: D } = options;
    const gradOf = Object.fromEntries(names.map((name, i) => [name, ctx.weight(FIRST + i)])) as Record<
      (typeof names)[number],
      WeightGrad | null
    >;
    const results = (dx: Tensor | null): Grad[] => [null, dx, ...names.map((name) => gradOf[name]?.result ?? null)];
    const half = new Half(x, weights, options);
    const gradsOf = (of: Projection) => ({ a: gradOf[`${of}A`], b: gradOf[`${of}B`] });

    // The gradient of the last product.
    let dproduct = dy;
    if (options.outNorm !== null) {
      dproduct = half.empty(x.shape[1] as number);
      // What the norm read is made again.
      eachTile(x.device, x.shape[0] as number, options.rows, ({ start, length }) => {
        const product = rowsOf(dproduct, start, length);
        const read = Tensor.empty(product.shape, { device: x.device, dtype: x.dtype });
        matmulInto(rowsOf(o, start, length), transposedRows(weights.o, 0, x.shape[1] as number), read, {
          bias: weights.oBias,
        });
        const adapter = half.adapter("o");
        if (adapter) withRows(adapter, start, length, (part) => addLowRank(rowsOf(o, start, length), part, read));
        normBackwardInto(
          options.outNorm as NormKind,
          { weight: weights.outNorm as Tensor, bias: null },
          { x: read, dy: rowsOf(dy, start, length), dx: product, accumulate: false },
          { weight: gradOf.outNorm, bias: null },
        );
      });
    }
    gradOf.o?.add((out, accumulate) => matmulTransposed(dproduct, true, o, false, out, accumulate));
    gradOf.oBias?.add((out, accumulate) => addRowSums(dproduct, out, accumulate));
    const ofOutput = half.adapter("o");
    const dlowOutput = ofOutput && emptyLow(o, ofOutput);
    half.eachTileOf(ofOutput, (part, start, length) =>
      lowRankGradients(
        part,
        rowsOf(o, start, length),
        rowsOf(dproduct, start, length),
        gradsOf("o"),
        rowsOf(dlowOutput as Tensor, start, length),
      ),
    );
    const behind = ["o", "oBias", "oA", "oB", "outNorm"];
    const wanted = ctx.needsGrad[1] === true;
    if (!wanted && !names.some((name) => !behind.includes(name) && gradOf[name] !== null)) return results(null);

    // From here on o is read only by the chunk whose dq takes its place.
    const dq = ctx.lastUse(outputIndex) ? o : half.empty(N * D);
    const [dk, dv] = [half.empty(K * D), half.empty(K * D)];
    const { ulysses } = half;
    let open: { panel: Panel; into: PanelGradients } | undefined;
    half.eachChunk((chunk) => {
      const { q, panels } = made
        ? {
            q: half.again(made.q, weights.qNorm),
            panels: new Map([
              [chunk.runs[0] as Run, { k: half.again(made.k, weights.kNorm), v: made.v.alias(), sums: null }],
            ]),
          }
        : half.project(chunk, true);
      const forDout = half.emptyParcel(chunk.heads * D);
      scope(() =>
        half.eachOwner(forDout, (rows, owner) => {
          const first = (ulysses.firstHead(owner) + chunk.head) * D;
          matmulInto(dproduct, columnsOf(weights.o, first, chunk.heads * D), rows);
          half.eachTileOf(ofOutput, (part, start, length) =>
            addBack(rowsOf(dlowOutput as Tensor, start, length), part, rowsOf(rows, start, length), first),
          );
        }),
      );
      const { o: ofChunk, delta } = ulysses.outputs(o, forDout, chunk, D, half.stretches);
      const dout = ulysses.toHeads(forDout);
      const dqPart = ulysses.share(dq, chunk.head * D, chunk.heads * D);
      for (const run of chunk.runs) {
        const place = (): PanelGradients => ({
          dk: ulysses.share(dk, run.group * D, run.groups * D),
          dv: ulysses.share(dv, run.group * D, run.groups * D),
        });
        const opened = panels.get(run);
        if (opened) open = { panel: opened, into: opened.sums ?? place() };
        const { panel, into } = open as NonNullable<typeof open>;
        const given = { q: q.turned, panel, o: ofChunk, delta, lse, dout };
        half.attendBack(run, chunk, given, { ...into, dq: dqPart, accumulate: !run.opens });
        if (!run.closes) continue;
        let whole = into;
        if (panel.sums) {
          whole = place();
          copyInto(panel.sums.dk, whole.dk);
          copyInto(panel.sums.dv, whole.dv);
        }
        half.turnBack(whole.dk, panel.k, weights.kNorm, gradOf.kNorm);
        const columnOf = (owner: number): number => (ulysses.firstKvHead(owner) + run.group) * D;
        ulysses.collectKv(whole.dk, dk, columnOf);
        ulysses.collectKv(whole.dv, dv, columnOf);
        disposePanel(panel);
      }
      for (const tensor of [dout, ofChunk, delta]) tensor?.dispose();
      half.turnBack(dqPart, q, weights.qNorm, gradOf.qNorm);
      ulysses.collect(dqPart, dq, (owner) => (ulysses.firstHead(owner) + chunk.head) * D);
      disposeHeads(q);
    });

    dlowOutput?.dispose();
    if (dproduct !== dy) dproduct.dispose();

    const needsRows = wanted || gradOf.norm !== null || gradOf.normBias !== null;
    const dx = needsRows ? owned(dy) : null;
    const across = half.acrossHeads;
    half.eachTile((normed, start, length, x) => {
      const parts = ([["q", dq] as const, ["k", dk] as const, ["v", dv] as const] as const).map(([of, d]) => ({
        of,
        d: rowsOf(d, start, length),
        weight: weights[of],
        grad: gradOf[of],
        bias: gradOf[`${of}Bias`],
        adapter: half.adapter(of),
      }));
      if (across !== null)
        for (const [i, norm, bias, grad] of [
          [0, weights.qNorm, weights.qBias, gradOf.qNorm],
          [1, weights.kNorm, weights.kBias, gradOf.kNorm],
        ] as const) {
          const { d, weight, adapter } = parts[i] as (typeof parts)[0];
          // What the norm read is made again.
          const read = Tensor.empty(d.shape, { device: d.device, dtype: d.dtype });
          matmulInto(normed, transposedRows(weight, 0, d.shape[1] as number), read, { bias });
          if (adapter) withRows(adapter, start, length, (part) => addLowRank(normed, part, read));
          normBackwardInto(
            across,
            { weight: norm as Tensor, bias: null },
            { x: read, dy: d, dx: d, accumulate: false },
            { weight: grad, bias: null },
          );
          read.dispose();
        }
      for (const { d, grad, bias } of parts) {
        grad?.add((out, accumulate) => matmulTransposed(d, true, normed, false, out, accumulate));
        bias?.add((out, accumulate) => addRowSums(d, out, accumulate));
      }
      const lows = parts.map(({ of, d, adapter }) => {
        const dlow = adapter && emptyLow(normed, adapter);
        if (adapter)
          withRows(adapter, start, length, (part) => lowRankGradients(part, normed, d, gradsOf(of), dlow as Tensor));
        return dlow;
      });
      if (!dx) return;
      const into = rowsOf(dx, start, length);
      /** dn = (or +=) what the products and their adapters read. */
      const addInputs = (dn: Tensor, added: boolean): void => {
        for (const [i, { d, weight, adapter }] of parts.entries()) {
          matmulInto(d, weight, dn, { accumulate: added || i > 0 });
          if (adapter) withRows(adapter, start, length, (part) => addBack(lows[i] as Tensor, part, dn));
        }
      };
      if (options.norm === null) {
        addInputs(into, true);
        return;
      }
      // What was read last gives its room to its gradient.
      addInputs(normed, false);
      normBackwardInto(
        options.norm,
        { weight: weights.norm as Tensor, bias: null },
        { x, dy: normed, dx: into, accumulate: true },
        { weight: gradOf.norm, bias: gradOf.normBias },
      );
    });
    return results(wanted ? dx : null);
  }
}
const attentionChunksFunction = new AttentionChunks();

/** x + o_proj(softmax attention of the rotated q and k, and v, of norm(x)).  x [T, H] -> [T, H]. Causal, within
 * documents. Backward keeps x, the output and log-sum-exp, and, with one chunk, the projections. */
export const attentionChunks = (x: Tensor, weights: AttentionWeights, options: AttentionChunksOptions): Tensor =>
  attentionChunksFunction.apply(options, x, ...names.map((name) => weights[name] ?? null));
