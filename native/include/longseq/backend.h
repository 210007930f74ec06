/* The C function table that every longseq backend fills: memory, copies and one entry an op.
 *
 * Rules that hold for every entry:
 *  - Shapes, dtypes and overlaps were checked by native/runtime before the entry is called; an entry
 *    checks nothing again and returns LS_OK unless the work itself fails.
 *  - `data` of a tensor already points at its first element; sizes and strides count elements.
 *  - An entry runs on one of the device's queue threads, never on the JavaScript thread. It may split
 *    its work with ls_exec.parallel, whose split depends on the shape alone, so results are the same
 *    bits for every thread count.
 *  - No exception and no JavaScript handle crosses this table. On failure an entry writes one line
 *    into ls_exec.error and returns a status.
 *
 * Letters in shapes: T tokens of a (packed) sequence, H hidden, N query heads, K key/value heads,
 * D head size, F feed-forward, V vocabulary, E experts, k experts of a token, M = T k rows of tokens and experts.
 */
#ifndef LONGSEQ_BACKEND_H
#define LONGSEQ_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever the meaning or the layout of anything in this header changes. */
#define LS_BACKEND_API_VERSION 8
#define LS_MAX_DIMS 6

typedef enum ls_dtype {
  LS_F32 = 0,
  LS_BF16 = 1,
  LS_F64 = 2, /* scalars of sums, norms, losses */
  LS_I32 = 3, /* token ids, labels */
  LS_I64 = 4, /* positions, cu_seqlens, counters */
  LS_U8 = 5
} ls_dtype;

typedef enum ls_status {
  LS_OK = 0,
  LS_INVALID_ARGUMENT = 1,
  LS_OUT_OF_MEMORY = 2,
  LS_UNSUPPORTED = 3,
  LS_DEVICE_FAILURE = 4,
  LS_IO = 5,
  LS_CANCELLED = 6
} ls_status;

/* Each device has these ordered queues; one native thread drains each. The disk's move bytes between host memory and
 * files: they are the runtime's own, and no backend is asked to open or to serve them. */
typedef enum ls_queue_kind {
  LS_QUEUE_COMPUTE = 0,
  LS_QUEUE_COPY_OUT = 1,
  LS_QUEUE_COPY_IN = 2,
  LS_QUEUE_COMM = 3,
  LS_QUEUE_DISK_OUT = 4,
  LS_QUEUE_DISK_IN = 5,
  LS_QUEUE_COUNT = 6
} ls_queue_kind;

/* What an allocation is for. Peaks and out-of-memory messages are broken down by it. */
typedef enum ls_category {
  LS_PARAMS = 0,
  LS_GRADS = 1,
  LS_OPTIMIZER = 2,
  LS_CHECKPOINTS = 3,
  LS_ACTIVATIONS = 4,
  LS_LOGITS = 5,
  LS_COMM = 6,
  LS_WORKSPACE = 7,
  LS_CATEGORY_COUNT = 8
} ls_category;

/* Where bytes live. */
typedef enum ls_tier { LS_TIER_DEVICE = 0, LS_TIER_HOST = 1, LS_TIER_DISK = 2, LS_TIER_COUNT = 3 } ls_tier;

typedef struct ls_tensor {
  void *data; /* first element; NULL on the meta backend and for an absent optional tensor */
  int64_t sizes[LS_MAX_DIMS];
  int64_t strides[LS_MAX_DIMS]; /* in elements; 0 broadcasts */
  int32_t ndim;
  int32_t dtype;    /* ls_dtype */
  int32_t category; /* ls_category */
  int32_t present;  /* 0 for an absent optional tensor */
} ls_tensor;

/* body(context, begin, end) handles the items begin..end-1 of a range. */
typedef void (*ls_range_fn)(void *context, int64_t begin, int64_t end);

/* What an entry gets to work with. Valid during the call only. */
typedef struct ls_exec {
  void *device;    /* the backend's own state from device_open */
  int32_t queue;   /* ls_queue_kind */
  int32_t threads; /* threads that parallel may use; never let results depend on it */
  void *stream;    /* the backend's own state from queue_open */
  void *workspace; /* as many bytes as the op's workspace function in native/runtime asked for */
  int64_t workspace_bytes;
  /* Runs body over 0..items-1 in pieces of `grain` items (the last may be shorter), pieces handed to the
   * pool in ascending order, each begin a multiple of grain. Returns when all are done. */
  void (*parallel)(const struct ls_exec *exec, int64_t items, int64_t grain, ls_range_fn body, void *context);
  void *pool;  /* of `parallel`; not for entries */
  char *error; /* one line on failure */
  size_t error_size;
} ls_exec;

/* ---- Arguments, one struct an op. Tensors come first. "+=" marks accumulation into what is there. ---- */

/* c = alpha * op(a) . op(b) [+ bias] [+ c if accumulate]; transposes are strides.
 * a [..., M, K], b [..., K, N], c [..., M, N] with equal leading (batch) sizes, at most two of them; bias [N].
 * a, b: float32 or bfloat16 (may differ); c: float32 or bfloat16; products and sums float32. */
typedef struct ls_matmul_args {
  ls_tensor a, b, c, bias; /* bias optional */
  double alpha;
  int64_t accumulate; /* 0 or 1 */
} ls_matmul_args;

/* y = x / sqrt(mean(x^2) + eps) * weight, over the last dim.  x, y [T, H], weight [H]; y may be x. */
typedef struct ls_rms_norm_args {
  ls_tensor x, weight, y;
  double eps;
} ls_rms_norm_args;

/* Recomputes the row statistics from x. dx [T, H], may be dy; dweight [H] float32, +=, optional.
 * accumulate_dx: dx += (the residual's gradient is there already). */
typedef struct ls_rms_norm_backward_args {
  ls_tensor x, weight, dy, dx, dweight;
  double eps;
  int64_t accumulate_dx;
} ls_rms_norm_backward_args;

/* y = (x - mean) / sqrt(var + eps) * weight + bias, over the last dim; bias optional. */
typedef struct ls_layer_norm_args {
  ls_tensor x, weight, y, bias;
  double eps;
} ls_layer_norm_args;

/* dweight, dbias [H] float32, +=, optional. */
typedef struct ls_layer_norm_backward_args {
  ls_tensor x, weight, dy, dx, dweight, dbias;
  double eps;
  int64_t accumulate_dx;
} ls_layer_norm_backward_args;

/* Rotates the first rotary_dim values of each head: pairs (i, i + rotary_dim/2), angle = positions[t] * inv_freq[i].
 * x, y [T, N, D] (y may be x); positions [T] int64; inv_freq [rotary_dim/2] float32.
 * The angle and its reduction to (-pi, pi] are float64. cos and sin are scaled by `scaling` (YaRN's attention factor).
 * inverse: rotates by the negative angle, which is the backward. */
typedef struct ls_rope_args {
  ls_tensor x, positions, inv_freq, y;
  double scaling;
  int64_t inverse;
} ls_rope_args;

/* Gated activation: y = act(gate) * up. kind: ls_unary_kind of act (silu: SwiGLU; gelu kinds: GeGLU). [T, F]; y may be
 * gate or up. */
typedef struct ls_swiglu_args {
  ls_tensor gate, up, y;
  int64_t kind;
} ls_swiglu_args;

/* dgate may be gate, dup may be up. */
typedef struct ls_swiglu_backward_args {
  ls_tensor gate, up, dy, dgate, dup;
  int64_t kind;
} ls_swiglu_backward_args;

typedef enum ls_unary_kind {
  LS_UNARY_SILU = 0,
  LS_UNARY_GELU = 1,      /* erf form */
  LS_UNARY_GELU_TANH = 2, /* tanh form */
  LS_UNARY_RELU = 3,
  LS_UNARY_SIGMOID = 4,
  LS_UNARY_TANH = 5,
  LS_UNARY_EXP = 6,
  LS_UNARY_LOG = 7,
  LS_UNARY_SQRT = 8,
  LS_UNARY_NEG = 9,
  LS_UNARY_ABS = 10,
  LS_UNARY_SQUARE = 11,
  LS_UNARY_RSQRT = 12,
  LS_UNARY_COUNT = 13
} ls_unary_kind;

/* y = f(x), same sizes; y may be x. */
typedef struct ls_unary_args {
  ls_tensor x, y;
  int64_t kind;
} ls_unary_args;

/* dx = dy * f'(x); dx may be dy. */
typedef struct ls_unary_backward_args {
  ls_tensor x, dy, dx;
  int64_t kind;
} ls_unary_backward_args;

typedef enum ls_binary_kind {
  LS_BINARY_ADD = 0,
  LS_BINARY_SUB = 1,
  LS_BINARY_MUL = 2,
  LS_BINARY_DIV = 3,
  LS_BINARY_MAXIMUM = 4,
  LS_BINARY_COUNT = 5
} ls_binary_kind;

/* y = a (op) b elementwise; equal sizes, broadcast by zero strides; y may be a or b. Storage float32, bfloat16
 * (float32 arithmetic) or all three float64 or int64. */
typedef struct ls_binary_args {
  ls_tensor a, b, y;
  int64_t kind;
} ls_binary_args;

/* y = alpha * factor * x + beta * y; factor is an optional device scalar [] (float32 or float64).
 * beta 0 never reads y. One op for residual adds, scaling and gradient accumulation (y float32, x bfloat16 allowed). */
typedef struct ls_axpby_args {
  ls_tensor x, y, factor;
  double alpha, beta;
} ls_axpby_args;

/* y[t, :] = table[ids[t], :].  ids [T] int32, table [V, H], y [T, H]. */
typedef struct ls_embedding_args {
  ls_tensor ids, table, y;
} ls_embedding_args;

/* dtable[ids[t], :] += dy[t, :], in ascending t for each row: deterministic. dtable [V, H] float32. */
typedef struct ls_embedding_backward_args {
  ls_tensor ids, dy, dtable;
} ls_embedding_backward_args;

/* Which experts each token goes to. logits [T, E] float32; probs [T, E] float32 = softmax of each row, may be logits.
 * experts [T, k] int32: the k of the largest probs, largest first, of equal ones the lower expert. The M = T k rows of
 * a token and an expert are sorted by expert, then by token: slots [T, k] int32 is where a token's choices lie there,
 * tokens [M] int32 whose row each is, weights [M] float32 its expert's prob, divided by the sum of the token's k where
 * `normalize`, offsets [E + 1] int64 where each expert's rows begin. load [2, E] float64, optional, += of the first
 * `counted` tokens how many chose each expert, and the sums of their probs. All contiguous but logits and probs. */
typedef struct ls_route_args {
  ls_tensor logits, probs, experts, slots, tokens, weights, offsets, load;
  int64_t normalize, counted;
} ls_route_args;

/* dlogits [T, E] float32 (may be probs) from dweights [M] float32. share [E] and factor [], float64, both or none:
 * factor * share is added to the gradient of each of the first `counted` tokens' probs (a load-balancing loss). */
typedef struct ls_route_backward_args {
  ls_tensor probs, experts, slots, dweights, share, factor, dlogits;
  int64_t normalize, counted;
} ls_route_backward_args;

/* Products of groups of rows, each with a matrix of its own; group e is rows offsets[e] .. offsets[e + 1] - 1 of M.
 * c [M, N]: a [M, K], b [E, K, N]: the rows of group e of c = those of a . b[e] [+ c if accumulate].
 * c [E, K, N]: a [K, M], b [M, N]: c[e] = the columns of group e of a . its rows of b [+ c[e] if accumulate]; 0 where
 * the group is empty. offsets [E + 1] int64 on the device, ascending from 0 to M. Transposes are strides; dtypes and
 * sums as in matmul. */
typedef struct ls_grouped_matmul_args {
  ls_tensor a, b, c, offsets;
  int64_t accumulate; /* 0 or 1 */
} ls_grouped_matmul_args;

/* y[t, :] = sum over j of weights[slots[t, j]] * x[slots[t, j], :] [+ y[t, :] if accumulate], j ascending, in float32.
 * x [M, H], y [T, H], slots [T, k] int32, weights [M] float32, optional (1). */
typedef struct ls_combine_args {
  ls_tensor x, slots, weights, y;
  int64_t accumulate; /* 0 or 1 */
} ls_combine_args;

/* y[m] = sum over i of a[m, i] * b[m, i].  a, b [M, F], y [M] float32. */
typedef struct ls_row_dot_args {
  ls_tensor a, b, y;
} ls_row_dot_args;

/* y [T, W] = (or, with accumulate, +=) x [T, W] where a random number is at least `rate`, times 1 / (1 - rate), and 0
 * elsewhere. The number of element (t, w), with c = first + w, is word c % 4 of the Philox4x32-10 block with key `seed`
 * and counter (c / 4, stream, low and high half of rows[t]), over 2^32. rows [T] int64. y may be x. */
typedef struct ls_dropout_args {
  ls_tensor x, rows, y;
  double rate; /* from 0 to below 1 */
  int64_t seed, stream, first;
  int64_t accumulate;
} ls_dropout_args;

/* Softmax attention. q [Tq, N, D], k [Tk, K, D], v [Tk, K, D], o [Tq, N, D]: last dim contiguous, the others strided.
 * lse [N, Tq] float32: natural log of sum(exp(scale * q.k)) over the keys attended; -inf and o = 0 where there is none.
 * Query head n reads key head n / (N / K). Query row i stands at position q_offset + i, key row j at k_offset + j;
 * i attends j iff (not causal, or pos_j <= pos_i) and (window == 0, or |pos_i - pos_j| < window)
 * and both lie in the same document. cu_seqlens [documents + 1] int64, ascending, in the same coordinates as the
 * positions (absent: one document). */
typedef struct ls_attention_args {
  ls_tensor q, k, v, o, lse, cu_seqlens;
  double scale;
  double softcap; /* scores become softcap * tanh(score / softcap); 0: they stay */
  int64_t causal, window, q_offset, k_offset;
  const int64_t *cu_seqlens_host; /* the same numbers, readable by the host while the task lives; NULL if absent */
  int64_t documents;
} ls_attention_args;

/* lse as forward gave it. delta [N, Tq] float32 = rowsum(do * o), optional (then o is read and delta made).
 * dq [Tq, N, D], dk, dv [Tk, K, D]; accumulate_dq, accumulate_dkv: += into them. dq may be o. */
typedef struct ls_attention_backward_args {
  ls_tensor q, k, v, o, lse, dout, delta, dq, dk, dv, cu_seqlens;
  double scale, softcap;
  int64_t causal, window, q_offset, k_offset;
  int64_t accumulate_dq, accumulate_dkv, deterministic;
  const int64_t *cu_seqlens_host;
  int64_t documents;
} ls_attention_backward_args;

/* Attention over two sets of keys put together: o, lse as attention gave them for the one, part, part_lse for the
 * other; afterwards o, lse are those of both. o, part [T, N, D]; lse, part_lse [N, T] float32, -inf where there is no
 * key. */
typedef struct ls_attention_merge_args {
  ls_tensor o, lse, part, part_lse;
} ls_attention_merge_args;

/* Token losses of a tile of logits, and their gradient in the same pass.
 * logits [T, V]; labels [T] int32, -100 ignored; loss [] float64, += sum of token losses (natural log);
 * dlogits [T, V] optional, may be logits: (softmax - onehot) * scale, zero rows where ignored.
 * lse [T] float32 optional: log-sum-exp of each row. losses [T] float64 optional, dense: each row's loss, 0 where
 * ignored. */
typedef struct ls_cross_entropy_args {
  ls_tensor logits, labels, loss, dlogits, lse, losses;
  double scale;
} ls_cross_entropy_args;

/* dst = src with cast; same sizes, any strides (so a permuting copy is a copy of a permuted view). */
typedef struct ls_copy_args {
  ls_tensor src, dst;
} ls_copy_args;

typedef struct ls_fill_args {
  ls_tensor y;
  double value;
} ls_fill_args;

/* y = alpha * sum of x over the dims where y has size 1 and x has not (same ndim), += if accumulate.
 * Blocked sums in float64; order depends on the shape alone. */
typedef struct ls_sum_args {
  ls_tensor x, y;
  double alpha;
  int64_t accumulate;
} ls_sum_args;

/* y [] float64 += sum(x^2). */
typedef struct ls_norm_squared_args {
  ls_tensor x, y;
} ls_norm_squared_args;

/* y = max of x over the last dim and its first index. x [T, V]; index [T] int32. */
typedef struct ls_argmax_args {
  ls_tensor x, index;
} ls_argmax_args;

/* From total [] float64 (a sum of squares) makes norm [] float64 = sqrt(total), the clip factor
 * factor [] float64 = min(1, max_norm / (norm + 1e-6)) (1 where max_norm <= 0), and finite [] int64 = 1 or 0 by
 * isfinite(norm), ANDed with isfinite(loss) where loss [] float64 is given. */
typedef struct ls_clip_factor_args {
  ls_tensor total, norm, factor, finite, loss; /* loss optional */
  double max_norm;
} ls_clip_factor_args;

/* step [] int64 += finite (1 where finite is absent). Once an optimizer step, before the adamw of its tensors. */
typedef struct ls_adamw_advance_args {
  ls_tensor step, finite; /* finite optional */
} ls_adamw_advance_args;

/* torch's AdamW on one tensor: g = grad * factor; p -= lr * wd * p; m, v moments; bias correction by step[];
 * p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps).
 * param float32 or bfloat16; master float32 (optional; where present it is the value updated and param its rounding);
 * grad float32 or bfloat16; m, v float32; factor, finite, step scalars as above. finite == 0: nothing changes. */
typedef struct ls_adamw_args {
  ls_tensor param, grad, m, v, step, master, factor, finite; /* last three optional */
  double learning_rate, beta1, beta2, eps, weight_decay;
} ls_adamw_args;

/* Philox4x32-10, counter = (offset + element index) / 4 (row-major index), key = seed; the same on every backend.
 * normal (mean, std by Box-Muller) or uniform [low, high). y contiguous. */
typedef struct ls_random_args {
  ls_tensor y;
  double a, b; /* normal: mean, std; uniform: low, high */
  int64_t seed, offset;
  int64_t normal;
} ls_random_args;

typedef enum ls_block_format {
  LS_BLOCK_INT8 = 0,   /* two's complement, -127..127 */
  LS_BLOCK_FLOAT8 = 1, /* e4m3 without infinities: bias 7, largest 448, subnormals of 2^-9 */
  LS_BLOCK_FORMAT_COUNT = 2
} ls_block_format;

/* Values of a block of the last dim that share one scale; the last block of a row may be shorter. */
#define LS_BLOCK_VALUES 64

/* Block-scaled 8 bits. x [..., W] float32 or bfloat16; packed uint8, contiguous, x's leading sizes and
 * W + 2 * ceil(W / 64) in the last dim: a row's codes, then its blocks' bfloat16 scales.
 * scale = (the block's largest magnitude) / (127 or 448), rounded up to bfloat16; code = value / scale (a float32
 * division), rounded to nearest even. A block of zeros has scale 0; one that holds a NaN or an infinity has scale NaN
 * and comes back as NaNs. */
typedef struct ls_quantize_args {
  ls_tensor x, packed;
  int64_t format; /* ls_block_format */
} ls_quantize_args;

/* y = code * scale, rounded to y's dtype, at most its largest finite value in magnitude. */
typedef struct ls_dequantize_args {
  ls_tensor packed, y;
  int64_t format;
} ls_dequantize_args;

/* What a device can do, filled by device_open. */
typedef struct ls_device_info {
  char name[128];       /* e.g. "cpu (avx512, 2 threads)" */
  int64_t memory_bytes; /* total */
  int64_t memory_free_bytes;
  int64_t page_bytes;     /* granularity of commit and decommit */
  double peak_bf16_flops; /* dense rate for mfu; 0 where unknown */
  char pci_address[32];   /* of a GPU, as the system writes it ("0000:17:00.0"); "" of others */
} ls_device_info;

typedef struct ls_backend {
  int32_t api_version;  /* LS_BACKEND_API_VERSION, checked before any other field is read */
  int32_t struct_bytes; /* sizeof(ls_backend) */
  const char *name;
  /* 1: the device cannot work on host-tier tensors (but copy, upload and download reach them); the runtime gives ops on
   * those to the CPU backend. 0: one memory. */
  int32_t separate_memory;

  /* ---- devices and memory ---- */
  /* Opens device `index`; *device is the backend's own state. */
  ls_status (*device_open)(int32_t index, int32_t threads, void **device, ls_device_info *info, char *error,
                           size_t error_size);
  void (*device_close)(void *device);
  /* Reserves address space without memory behind it. */
  ls_status (*reserve)(void *device, int32_t tier, int64_t bytes, void **address);
  void (*unreserve)(void *device, int32_t tier, void *address, int64_t bytes);
  /* Backs whole pages of a reservation (called on the JavaScript thread), and gives them back (called on the compute
   * queue, after every task that was enqueued before). */
  ls_status (*commit)(void *device, int32_t tier, void *address, int64_t bytes);
  void (*decommit)(void *device, int32_t tier, void *address, int64_t bytes);
  /* (optional) Why the last commit of this thread failed, one line. */
  void (*commit_error)(void *device, char *error, size_t error_size);
  /* Moves bytes between host memory and a device address, blocking the calling queue thread. */
  ls_status (*upload)(const ls_exec *, void *device_address, const void *host, int64_t bytes);
  ls_status (*download)(const ls_exec *, void *host, const void *device_address, int64_t bytes);

  /* ---- queues (optional: NULL where an entry has finished its work when it returns) ---- */
  ls_status (*queue_open)(void *device, int32_t kind, void **stream);
  void (*queue_close)(void *device, void *stream);
  /* Waits for all work given to the stream; a failure of it leaves one line in error. */
  ls_status (*queue_synchronize)(void *device, void *stream, char *error, size_t error_size);
  ls_status (*event_record)(void *device, void *stream, void **event);
  ls_status (*event_wait)(void *device, void *stream, void *event); /* makes the stream wait; does not block the host */
  void (*event_free)(void *device, void *event);
  /* Waits on the host until the event has happened; a failure of the work before it leaves one line in error. */
  ls_status (*event_synchronize)(void *device, void *event, char *error, size_t error_size);
  /* Milliseconds between two events that have happened. */
  ls_status (*event_elapsed)(void *device, void *from, void *to, double *milliseconds);

  /* ---- ops: same name in native/runtime/ops, native/<backend>, lib/ops and test/ops ---- */
  ls_status (*matmul)(const ls_exec *, const ls_matmul_args *);
  ls_status (*rms_norm)(const ls_exec *, const ls_rms_norm_args *);
  ls_status (*rms_norm_backward)(const ls_exec *, const ls_rms_norm_backward_args *);
  ls_status (*layer_norm)(const ls_exec *, const ls_layer_norm_args *);
  ls_status (*layer_norm_backward)(const ls_exec *, const ls_layer_norm_backward_args *);
  ls_status (*rope)(const ls_exec *, const ls_rope_args *);
  ls_status (*swiglu)(const ls_exec *, const ls_swiglu_args *);
  ls_status (*swiglu_backward)(const ls_exec *, const ls_swiglu_backward_args *);
  ls_status (*unary)(const ls_exec *, const ls_unary_args *);
  ls_status (*unary_backward)(const ls_exec *, const ls_unary_backward_args *);
  ls_status (*binary)(const ls_exec *, const ls_binary_args *);
  ls_status (*axpby)(const ls_exec *, const ls_axpby_args *);
  ls_status (*embedding)(const ls_exec *, const ls_embedding_args *);
  ls_status (*embedding_backward)(const ls_exec *, const ls_embedding_backward_args *);
  ls_status (*route)(const ls_exec *, const ls_route_args *);
  ls_status (*route_backward)(const ls_exec *, const ls_route_backward_args *);
  ls_status (*grouped_matmul)(const ls_exec *, const ls_grouped_matmul_args *);
  ls_status (*combine)(const ls_exec *, const ls_combine_args *);
  ls_status (*row_dot)(const ls_exec *, const ls_row_dot_args *);
  ls_status (*dropout)(const ls_exec *, const ls_dropout_args *);
  ls_status (*attention)(const ls_exec *, const ls_attention_args *);
  ls_status (*attention_backward)(const ls_exec *, const ls_attention_backward_args *);
  ls_status (*attention_merge)(const ls_exec *, const ls_attention_merge_args *);
  ls_status (*cross_entropy)(const ls_exec *, const ls_cross_entropy_args *);
  ls_status (*copy)(const ls_exec *, const ls_copy_args *);
  ls_status (*fill)(const ls_exec *, const ls_fill_args *);
  ls_status (*sum)(const ls_exec *, const ls_sum_args *);
  ls_status (*norm_squared)(const ls_exec *, const ls_norm_squared_args *);
  ls_status (*argmax)(const ls_exec *, const ls_argmax_args *);
  ls_status (*clip_factor)(const ls_exec *, const ls_clip_factor_args *);
  ls_status (*adamw_advance)(const ls_exec *, const ls_adamw_advance_args *);
  ls_status (*adamw)(const ls_exec *, const ls_adamw_args *);
  ls_status (*random)(const ls_exec *, const ls_random_args *);
  ls_status (*quantize)(const ls_exec *, const ls_quantize_args *);
  ls_status (*dequantize)(const ls_exec *, const ls_dequantize_args *);
} ls_backend;

/* A backend in a shared library exports this symbol. NULL: it cannot be used here, with one line in error. */
typedef const ls_backend *(*ls_backend_open_fn)(int32_t api_version, char *error, size_t error_size);
#define LS_BACKEND_OPEN_SYMBOL "ls_backend_open"

/* ---- what other addons get ---- */

/* tensor.native() is an object with this type tag around an ls_native_tensor. */
#define LS_TENSOR_TAG_LOWER 0x6c6f6e6773657131ULL
#define LS_TENSOR_TAG_UPPER 0x74656e736f723031ULL
/* native.backendTable(device) is an external with this type tag around an ls_native_backend. */
#define LS_BACKEND_TAG_LOWER 0x6c6f6e6773657131ULL
#define LS_BACKEND_TAG_UPPER 0x6261636b656e6431ULL

/* Valid until the tensor is disposed. The device's queues may still be working on it: await
 * device.synchronize() first. */
typedef struct ls_native_tensor {
  int32_t api_version;
  ls_tensor tensor;
  const char *device; /* "cpu", "meta", "cuda:0" */
} ls_native_tensor;

/* The table and a ready ls_exec without workspace, for ops that need none. */
typedef struct ls_native_backend {
  int32_t api_version;
  const ls_backend *table;
  ls_exec exec;
} ls_native_backend;

#ifdef __cplusplus
}
#endif
#endif /* LONGSEQ_BACKEND_H */
