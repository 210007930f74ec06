// Ring attention (arXiv 2310.01889): each of R ranks holds two of 2R stretches of a sequence, one from the front and one
// from the back, so that all have equal work under a causal mask; keys and values of the others come one rank after the
// other, behind the attention to those that are there, and the results are merged by their log-sum-exps.
//
// C tokens a stretch; rank r holds stretch r and stretch 2R - 1 - r, 2C tokens. Numbers for each head and token lie
// stretch by stretch: [2, heads, C].
import { binding } from "../binding.js";
import { axpbyInto } from "../ops/axpby.js";
import { copyInto } from "../ops/copy.js";
import { sendReceiveInto } from "../ops/send_receive.js";
import type { Communicator } from "../parallel/communicator.js";
import { scope } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";
import { eachStretch } from "./each_tile.js";

/** Which stretch of the sequence is the first, or the second, of a rank. */
export const stretchOf = (rank: number, half: number, ranks: number): number =>
  half === 0 ? rank : 2 * ranks - 1 - rank;

/** Halves of a rank's tokens: 0 and 1, from `begin` to before `end`. */
interface Halves {
  readonly begin: number;
  readonly end: number;
}
const nothing: Halves = { begin: 0, end: 0 };

/** Who needs whose keys. */
export class RingLayout {
  readonly group: Communicator;
  /** C */
  readonly stretch: number;
  readonly #bounds: BigInt64Array;

  /** bounds: [documents + 1], those of the whole sequence. */
  constructor(group: Communicator, stretch: number, bounds: BigInt64Array) {
    this.group = group;
    this.stretch = stretch;
    this.#bounds = bounds;
  }

  /** Whether some token of stretch `query` attends to one of stretch `key`. window: 0 is none. */
  attends(query: number, key: number, window: number): boolean {
    if (key >= query) return key === query;
    const first = query * this.stretch;
    const last = (key + 1) * this.stretch - 1;
    return (window === 0 || first - last < window) && this.#documentStart(first) <= last;
  }

  /** Whether every token attends to all before it: what ranks do for one another's keys is then all the same. */
  isWhole(window: number): boolean {
    return window === 0 && this.#documentStart(2 * this.group.size * this.stretch - 1) === 0;
  }

  /** Where the document of a token begins. */
  #documentStart(token: number): number {
    let [low, high] = [0, this.#bounds.length - 1];
    while (low + 1 < high) {
      const middle = (low + high) >> 1;
      if (Number(this.#bounds[middle]) <= token) low = middle;
      else high = middle;
    }
    return Number(this.#bounds[low]);
  }

  /** The halves of rank `of` that rank `by` attends to. */
  needed(by: number, of: number, window: number): Halves {
    const { size } = this.group;
    const wanted = [0, 1].filter((half) =>
      [0, 1].some((own) => this.attends(stretchOf(by, own, size), stretchOf(of, half, size), window)),
    );
    return wanted.length === 0 ? nothing : { begin: wanted[0] as number, end: (wanted.at(-1) as number) + 1 };
  }
}

export interface RingOptions {
  readonly layout: RingLayout;
  /** D */
  readonly headDim: number;
  /** Factor on q.k. */
  readonly scale: number;
  /** Of scores; 0: none. */
  readonly softcap: number;
  /** [documents + 1] int64 of the whole sequence; null: one document. */
  readonly cuSeqlens: Tensor | null;
  readonly window: number;
}

/** Query heads and the key/value heads that they read: columns of [2C, ...]. */
export interface Columns {
  /** From the first column on; width: all columns that there are. */
  readonly head: number;
  readonly heads: number;
}

/** Keys and values of one rank, in use. */
interface Block {
  readonly k: Tensor;
  readonly v: Tensor;
  readonly rank: number;
  /** Which halves of its tokens they are. */
  readonly halves: Halves;
}

/** [rows, heads, D] of columns of [2C, ...], from a row on. */
function headsAt(x: Tensor, row: number, rows: number, { head, heads }: Columns, headDim: number): Tensor {
  const stride = x.strides[0] as number;
  return x.viewOf([rows, heads, headDim], [stride, headDim, 1], row * stride + head * headDim);
}

/** Attention of some heads over a ring. Big tensors belong to the caller. */
export class Ring {
  readonly #options: RingOptions;

  constructor(options: RingOptions) {
    this.#options = options;
  }

  get #rank(): number {
    return this.#options.layout.group.rank;
  }

  /** [count, C] of [2, heads, C]: one half, from a head on. */
  numbers(x: Tensor, half: number, { head, heads: count }: Columns): Tensor {
    const { stretch: C } = this.#options.layout;
    const heads = x.size / (2 * C);
    return x.viewOf([count, C], [C, 1], (half * heads + head) * C);
  }

  /** Rows of the halves of [2C, W], contiguous. */
  #rows(x: Tensor, { begin, end }: Halves): Tensor {
    const { stretch: C } = this.#options.layout;
    const width = x.shape[1] as number;
    return x.viewOf([(end - begin) * C, width], [width, 1], begin * C * width);
  }

  /** Keys and values of the rank `distance` before this one, on their way; own ones go to the rank as far behind. */
  #fetch(k: Tensor, v: Tensor, distance: number): Block | null {
    const { layout, window } = this.#options;
    const { size } = layout.group;
    const [to, from] = [(this.#rank + distance) % size, (this.#rank + size - distance) % size];
    const [sent, got] = [layout.needed(to, this.#rank, window), layout.needed(this.#rank, from, window)];
    if (sent.begin === sent.end && got.begin === got.end) return null;
    const arrive = (own: Tensor): Tensor => {
      const rows = (got.end - got.begin) * layout.stretch;
      const other = Tensor.empty([rows, own.shape[1] as number], {
        device: own.device,
        dtype: own.dtype,
        category: "comm",
      });
      scope(() => sendReceiveInto(this.#rows(own, sent), to, other, from, layout.group));
      return other;
    };
    return { k: arrive(k), v: arrive(v), rank: from, halves: got };
  }

  /** Calls `use` with the blocks that this rank attends to, own ones first; the next one comes beside each. */
  #eachBlock(k: Tensor, v: Tensor, use: (block: Block, distance: number) => void): void {
    const { layout, window } = this.#options;
    const { size } = layout.group;
    let next = this.#fetch(k, v, 1);
    use({ k, v, rank: this.#rank, halves: { begin: 0, end: 2 } }, 0);
    const others = size - 1;
    // What comes lies where the block before the last lay: two of them make a round.
    eachStretch(k.device, others, layout.isWhole(window) ? 2 : others, ({ start, length }) => {
      for (let distance = start + 1; distance <= start + length; distance++) {
        const block = next;
        next = distance < others ? this.#fetch(k, v, distance + 1) : null;
        if (block === null) continue;
        use(block, distance);
        block.k.dispose();
        block.v.dispose();
      }
    });
  }

  /** Calls `use` with each pair of a half of own queries and a half of the block's keys that attend. */
  #eachPair(
    block: Block,
    use: (pair: { query: number; key: number; row: number; qAt: number; kAt: number }) => void,
  ): void {
    const { layout, window } = this.#options;
    const { size } = layout.group;
    for (let query = 0; query < 2; query++)
      for (let key = block.halves.begin; key < block.halves.end; key++) {
        const [q, k] = [stretchOf(this.#rank, query, size), stretchOf(block.rank, key, size)];
        if (!layout.attends(q, k, window)) continue;
        const row = (key - block.halves.begin) * layout.stretch;
        use({ query, key, row, qAt: q * layout.stretch, kAt: k * layout.stretch });
      }
  }

  /**
   * q: the queries' columns; k, v [2C, groups D] contiguous -> o's columns, and lse [2, heads, C] from `lseHead` on. The
   * columns of q and o are the same.
   */
  attend(q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, columns: Columns, lseHead: number): void {
    const { layout, headDim: D, cuSeqlens, window, scale, softcap } = this.#options;
    const C = layout.stretch;
    const { device } = q;
    const kv: Columns = { head: 0, heads: (k.shape[1] as number) / D };
    const float32 = (shape: readonly number[]): Tensor => Tensor.empty(shape, { device, dtype: "float32" });
    // Sums of what has come so far are float32.
    const sum = o.dtype === "float32" ? null : float32([2 * C, columns.heads * D]);
    const into = sum ?? o;
    const intoColumns: Columns = sum === null ? columns : { head: 0, heads: columns.heads };
    const part = float32([C, columns.heads * D]);
    const partLse = float32([columns.heads, C]);
    const begun = [false, false];
    this.#eachBlock(k, v, (block) =>
      this.#eachPair(block, ({ query, row, qAt, kAt }) =>
        scope(() => {
          const to = headsAt(into, query * C, C, intoColumns, D);
          const toLse = this.numbers(lse, query, { head: lseHead, heads: columns.heads });
          const [y, yLse] = begun[query]
            ? [headsAt(part, 0, C, { head: 0, heads: columns.heads }, D), partLse]
            : [to, toLse];
          binding.ops.attention(
            headsAt(q, query * C, C, columns, D).native(),
            headsAt(block.k, row, C, kv, D).native(),
            headsAt(block.v, row, C, kv, D).native(),
            y.native(),
            yLse.native(),
            cuSeqlens?.native() ?? null,
            scale,
            true,
            window,
            qAt,
            kAt,
            softcap,
          );
          if (begun[query]) binding.ops.attentionMerge(to.native(), toLse.native(), y.native(), yLse.native());
          begun[query] = true;
        }),
      ),
    );
    if (sum !== null) scope(() => copyInto(headsAt(sum, 0, 2 * C, intoColumns, D), headsAt(o, 0, 2 * C, columns, D)));
    for (const tensor of [sum, part, partLse]) tensor?.dispose();
  }

  /**
   * The gradients of the queries' columns of q, of k and of v. lse, delta [2, ..., C]: the log-sum-exp over all keys and
   * rowsum(dout o), from `lseHead` and `columns.head` on. dq's columns are those of q; it is written. dk, dv
   * [2C, groups D] are written, or added to.
   */
  attendBack(
    given: { q: Tensor; k: Tensor; v: Tensor; lse: Tensor; lseHead: number; delta: Tensor; dout: Tensor },
    into: { dq: Tensor; dk: Tensor; dv: Tensor; accumulate: boolean },
    columns: Columns,
  ): void {
    const { layout, headDim: D, cuSeqlens, window, scale, softcap } = this.#options;
    const { group, stretch: C } = layout;
    const { q, k, v } = given;
    const { device } = q;
    const width = k.shape[1] as number;
    const kv: Columns = { head: 0, heads: width / D };
    const float32 = (shape: readonly number[], category: "activations" | "comm" = "activations"): Tensor =>
      Tensor.empty(shape, { device, dtype: "float32", category });
    const dqSum = into.dq.dtype === "float32" ? null : float32([2 * C, columns.heads * D]);
    const own = [into.dk, into.dv].map((out) =>
      out.dtype === "float32" ? { sum: out, temporary: false } : { sum: float32([2 * C, width]), temporary: true },
    ) as [{ sum: Tensor; temporary: boolean }, { sum: Tensor; temporary: boolean }];
    const begunQuery = [false, false];
    const begunKey = [0, 1].map(() => into.accumulate && !own[0].temporary);
    /** Sums of other ranks for own keys and values, on their way. */
    let arriving: { sums: Tensor[]; halves: Halves } | null = null;
    const settle = (): void => {
      if (arriving === null) return;
      const { sums, halves } = arriving;
      scope(() =>
        sums.forEach((sum, i) => {
          const { sum: total } = own[i] as (typeof own)[0];
          const rows = (halves.end - halves.begin) * C;
          const stride = total.strides[0] as number;
          axpbyInto(sum, total.viewOf([rows, width], [stride, 1], halves.begin * C * stride), { beta: 1 });
        }),
      );
      for (const sum of sums) sum.dispose();
      arriving = null;
    };
    this.#eachBlock(k, v, (block, distance) => {
      const remote = distance > 0;
      const rows = (block.halves.end - block.halves.begin) * C;
      const sums = remote
        ? [float32([rows, width], "comm"), float32([rows, width], "comm")]
        : own.map(({ sum }) => sum);
      const begun = remote ? [false, false] : begunKey;
      this.#eachPair(block, ({ query, key, row, qAt, kAt }) =>
        scope(() => {
          const gradient = (sum: Tensor): Tensor => headsAt(sum, remote ? row : key * C, C, kv, D);
          const [dk, dv] = sums as [Tensor, Tensor];
          const dq =
            dqSum === null
              ? headsAt(into.dq, query * C, C, columns, D)
              : headsAt(dqSum, query * C, C, { head: 0, heads: columns.heads }, D);
          const dout = headsAt(given.dout, query * C, C, columns, D);
          binding.ops.attentionBackward(
            headsAt(q, query * C, C, columns, D).native(),
            headsAt(block.k, row, C, kv, D).native(),
            headsAt(block.v, row, C, kv, D).native(),
            // Not read where delta is given.
            dout.native(),
            this.numbers(given.lse, query, { head: given.lseHead, heads: columns.heads }).native(),
            dout.native(),
            this.numbers(given.delta, query, columns).native(),
            dq.native(),
            gradient(dk).native(),
            gradient(dv).native(),
            cuSeqlens?.native() ?? null,
            scale,
            true,
            window,
            qAt,
            kAt,
            begunQuery[query] as boolean,
            begun[key] as boolean,
            device.deterministic,
            softcap,
          );
          begunQuery[query] = true;
          begun[key] = true;
        }),
      );
      if (!remote) return;
      settle();
      const [to, from] = [block.rank, (this.#rank + distance) % group.size];
      const halves = layout.needed(from, this.#rank, window);
      const returned = sums.map((sum) => {
        const other = float32([(halves.end - halves.begin) * C, width], "comm");
        sendReceiveInto(sum, to, other, from, group);
        sum.dispose();
        return other;
      });
      arriving = { sums: returned, halves };
    });
    settle();
    scope(() => {
      if (dqSum !== null)
        copyInto(
          headsAt(dqSum, 0, 2 * C, { head: 0, heads: columns.heads }, D),
          headsAt(into.dq, 0, 2 * C, columns, D),
        );
      for (const [i, { sum, temporary }] of own.entries()) {
        const out = [into.dk, into.dv][i] as Tensor;
        if (temporary && into.accumulate) axpbyInto(sum, out, { beta: 1 });
        else if (temporary) copyInto(sum, out);
      }
    });
    dqSum?.dispose();
    for (const { sum, temporary } of own) if (temporary) sum.dispose();
  }
}
