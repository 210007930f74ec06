// Ulysses sequence parallelism (DeepSpeed-Ulysses, arXiv 2309.14509): outside attention a rank holds some tokens and all
// heads, within it all tokens and some heads; an all-to-all goes from the one to the other and back.
//
// P ranks, S tokens a rank, T = P S. Buffers of the exchange are [P S, C]: for each rank S rows of C columns. What comes
// back from it are the rows of all T tokens in their order, so neither side packs or unpacks.
import { binding } from "../binding.js";
import { ArgumentError } from "../errors.js";
import { allToAllInto } from "../ops/all_to_all.js";
import { axpbyInto } from "../ops/axpby.js";
import { copyInto } from "../ops/copy.js";
import type { Communicator } from "../parallel/communicator.js";
import type { Device } from "../tensor/device.js";
import type { DType } from "../tensor/dtype.js";
import { scope } from "../tensor/scope.js";
import { Tensor } from "../tensor/tensor.js";

/** Columns start .. start + length - 1 of [rows, C], as a view. */
const columnsOf = (x: Tensor, start: number, length: number): Tensor =>
  x.viewOf([x.shape[0] as number, length], x.strides, start * (x.strides[1] as number));

/** Who holds which heads, and the way there and back. Of one rank it is the identity. */
export class Ulysses {
  /** P */
  readonly size: number;
  /** Query heads of a rank: N / P. */
  readonly heads: number;
  /** Key/value heads of a rank: K / P, or one that P / K ranks share. */
  readonly kvHeads: number;
  readonly #group: Communicator | null;
  readonly #sharers: number;

  /** Throws ArgumentError for heads that the ranks cannot share out. */
  constructor(group: Communicator | null, heads: number, kvHeads: number) {
    const size = group?.size ?? 1;
    const wrong = unservedHeads(size, heads, kvHeads);
    if (wrong !== undefined) throw new ArgumentError(`attention: ${wrong}`);
    this.#group = group;
    this.size = size;
    this.heads = heads / size;
    this.kvHeads = Math.max(1, kvHeads / size);
    this.#sharers = Math.max(1, size / kvHeads);
  }

  /** The first query head of a rank. */
  firstHead(owner: number): number {
    return owner * this.heads;
  }

  /** The first key/value head of a rank. */
  firstKvHead(owner: number): number {
    return Math.floor(owner / this.#sharers) * this.kvHeads;
  }

  /** [P S, columns]; alone these are no parcel, but what is worked on. */
  parcel(rows: number, columns: number, device: Device, dtype: DType): Tensor {
    const category = this.#group === null ? "activations" : "comm";
    return Tensor.empty([this.size * rows, columns], { device, dtype, category });
  }

  /** From the ranks of the tokens to those of the heads: [P S, C] for each owner -> [T, C] of own heads. Takes over `send`. */
  toHeads(send: Tensor): Tensor {
    if (this.#group === null) return send;
    const received = this.#exchange(send, this.#group);
    send.dispose();
    return received;
  }

  #exchange(send: Tensor, group: Communicator, category: "activations" | "comm" = "activations"): Tensor {
    const { device, dtype, shape, size } = send;
    const received = Tensor.empty(shape, { device, dtype, category });
    const parts = (x: Tensor): Tensor => x.viewOf([group.size, size / group.size], [size / group.size, 1], 0);
    scope(() => allToAllInto(parts(send), parts(received), group));
    return received;
  }

  /** Where results for own heads go, `width` columns of all tokens: alone, those columns of `whole` [S, ...] themselves. */
  share(whole: Tensor, column: number, width: number, dtype = whole.dtype): Tensor {
    if (this.#group === null) return columnsOf(whole, column, width);
    return this.parcel(whole.shape[0] as number, width, whole.device, dtype);
  }

  /** From the ranks of the heads back to those of the tokens: into the columns `columnOf(owner)` of `whole`. Takes over `part`. */
  collect(part: Tensor, whole: Tensor, columnOf: (owner: number) => number): void {
    this.#collect(part, whole, columnOf, 1);
  }

  /** The same of key/value heads, whose gradients add up over the ranks that share one. */
  collectKv(part: Tensor, whole: Tensor, columnOf: (owner: number) => number): void {
    this.#collect(part, whole, columnOf, this.#sharers);
  }

  #collect(part: Tensor, whole: Tensor, columnOf: (owner: number) => number, sharers: number): void {
    if (this.#group !== null) {
      const received = this.#exchange(part, this.#group, "comm");
      scope(() => {
        const [rows, width] = [whole.shape[0] as number, part.shape[1] as number];
        const from = (owner: number): Tensor => received.viewOf([rows, width], [width, 1], owner * rows * width);
        for (let owner = 0; owner < this.size; owner += sharers) {
          const to = columnsOf(whole, columnOf(owner), width);
          // float32 sums in the order of the ranks, rounded once.
          const exact = sharers === 1 || whole.dtype === "float32";
          const sum = exact ? to : Tensor.empty([rows, width], { device: whole.device, dtype: "float32" });
          copyInto(from(owner), sum);
          for (let i = 1; i < sharers; i++) axpbyInto(from(owner + i), sum, { beta: 1 });
          if (!exact) copyInto(sum, to);
        }
      });
      received.dispose();
    }
    part.dispose();
  }

  /**
   * What the backward of `heads` own heads from `head` on needs of attention's output. Alone: the output's columns.
   * Otherwise delta = rowsum(dout o) [heads, T], made where the tokens are: it travels instead of the output. Of several
   * stretches of the tokens it is [stretches, heads, T / stretches]. dout: for each owner the gradient of its heads'
   * output [P S, heads D].
   */
  outputs(
    o: Tensor,
    dout: Tensor,
    { head, heads: count }: { head: number; heads: number },
    headDim: number,
    stretches: number,
  ): { o: Tensor; delta: Tensor | null } {
    if (this.#group === null && stretches === 1)
      return { o: columnsOf(o, head * headDim, count * headDim), delta: null };
    const delta = scope(() => {
      const { device } = o;
      const [rows, width] = [o.shape[0] as number, count * headDim];
      const sums = Tensor.empty([this.size * rows, count], { device, dtype: "float32" });
      const product = Tensor.empty([rows, width], { device, dtype: "float32" });
      for (let owner = 0; owner < this.size; owner++) {
        const own = columnsOf(o, (this.firstHead(owner) + head) * headDim, width);
        const gradient = dout.viewOf([rows, width], [width, 1], owner * rows * width);
        binding.ops.binary(own.native(), gradient.native(), product.native(), MULTIPLY);
        const by = product.viewOf([rows, count, headDim], [width, headDim, 1], 0);
        const into = sums.viewOf([rows, count, 1], [count, 1, 1], owner * rows * count);
        binding.ops.sum(by.native(), into.native(), 1, false);
      }
      const received = this.toHeads(sums);
      const length = (this.size * rows) / stretches;
      const delta = Tensor.empty([stretches, count, length], { device, dtype: "float32" });
      copyInto(received.viewOf([stretches, count, length], [length * count, 1, count], 0), delta);
      return stretches === 1 ? delta.viewOf([count, length], [length, 1], 0) : delta;
    });
    // Where delta is given the output is not read.
    return { o: dout.alias(), delta };
  }
}

/** LS_BINARY_MUL */
const MULTIPLY = 2;

/** Why N query and K key/value heads cannot be shared out among P ranks; undefined where they can. */
export function unservedHeads(size: number, heads: number, kvHeads: number): string | undefined {
  if (heads % size !== 0) return `${heads} query heads do not divide among ${size} ranks`;
  if (kvHeads % size !== 0 && size % kvHeads !== 0)
    return `${kvHeads} key/value heads can neither be divided among ${size} ranks nor shared evenly by them`;
  return undefined;
}
