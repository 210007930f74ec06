// attention: FlashAttention (arXiv 2205.14135, 2307.08691); memory linear in length, documents by cu_seqlens.
import { type Context, Function, type Grad } from "../autograd/function.js";
import { binding } from "../binding.js";
import { Tensor } from "../tensor/tensor.js";

export interface AttentionOptions {
  /** Factor on q.k. Default 1 / sqrt(D). */
  scale?: number;
  /** Key j is seen by query i only if j <= i. Default true. */
  causal?: boolean;
  /** i sees j only if |i - j| < window; 0 is none. */
  window?: number;
  /** Scores become softcap * tanh(score / softcap); 0: they stay. Default 0. */
  softcap?: number;
  /** Document boundaries [documents + 1] int64, made from host numbers; absent: one document. */
  cuSeqlens?: Tensor | null;
  /** Positions of the first query and the first key, in the coordinates of cuSeqlens. */
  qOffset?: number;
  kOffset?: number;
  /** A backward whose bits do not depend on timing (always so on the CPU). Default: as the device was opened. */
  deterministic?: boolean;
}

/** Keeps what attention made in a checkpointed layer, so that its recomputation does not run attention again. */
export interface AttentionKeeper {
  /** Handles of their own are to be taken. */
  record(o: Tensor, lse: Tensor): void;
  /** What the same call made before, handed over; undefined: compute it. */
  replay(): { o: Tensor; lse: Tensor } | undefined;
}

let keeper: AttentionKeeper | undefined;

/** The keeper of what runs now, if any. */
export const attentionKeeper = (): AttentionKeeper | undefined => keeper;

/** Runs `fn` with a keeper for its attention calls, in their order. */
export function withAttentionKeeper<T>(value: AttentionKeeper | undefined, fn: () => T): T {
  const before = keeper;
  keeper = value;
  try {
    return fn();
  } finally {
    keeper = before;
  }
}

class Attention extends Function<[Tensor, Tensor, Tensor, AttentionOptions], Tensor> {
  readonly name = "attention";
  forward(ctx: Context, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
    const resolved = {
      scale: 1 / Math.sqrt(q.shape[2] ?? 1),
      causal: true,
      window: 0,
      softcap: 0,
      qOffset: 0,
      kOffset: 0,
      ...options,
    };
    const cuSeqlens = options.cuSeqlens ?? null;
    const kept = keeper?.replay();
    const o = kept?.o ?? Tensor.empty(q.shape, { device: q.device, dtype: q.dtype });
    const lse = kept?.lse ?? Tensor.empty([q.shape[1] ?? 0, q.shape[0] ?? 0], { device: q.device, dtype: "float32" });
    if (!kept) {
      binding.ops.attention(
        q.native(),
        k.native(),
        v.native(),
        o.native(),
        lse.native(),
        cuSeqlens?.native() ?? null,
        resolved.scale,
        resolved.causal,
        resolved.window,
        resolved.qOffset,
        resolved.kOffset,
        resolved.softcap,
      );
      keeper?.record(o, lse);
    }
    ctx.save(q, k, v, o, lse, cuSeqlens);
    ctx.values = { ...resolved, documents: cuSeqlens !== null };
    lse.dispose();
    return o;
  }
  backward(ctx: Context, dout: Tensor): Grad[] {
    const [q, k, v, o, lse] = [ctx.saved(0), ctx.saved(1), ctx.saved(2), ctx.saved(3), ctx.saved(4)];
    const options = ctx.values as unknown as Required<AttentionOptions> & { documents: boolean };
    const like = (t: Tensor): Tensor => Tensor.empty(t.shape, { device: t.device, dtype: t.dtype });
    const [dq, dk, dv] = [like(q), like(k), like(v)];
    binding.ops.attentionBackward(
      q.native(),
      k.native(),
      v.native(),
      o.native(),
      lse.native(),
      dout.native(),
      null,
      dq.native(),
      dk.native(),
      dv.native(),
      options.documents ? ctx.saved(5).native() : null,
      options.scale,
      options.causal,
      options.window,
      options.qOffset,
      options.kOffset,
      false,
      false,
      options.deterministic ?? q.device.deterministic,
      options.softcap,
    );
    return [dq, dk, dv];
  }
}
const attentionFunction = new Attention();

/** softmax(scale q.k^T + mask) v.  q [Tq, N, D], k and v [Tk, K, D], N a multiple of K, D <= 256 -> [Tq, N, D].
 * A query that sees no key gives 0. */
export const attention = (q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = {}): Tensor =>
  attentionFunction.apply(q, k, v, options);
