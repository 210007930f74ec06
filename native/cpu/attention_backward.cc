// Softmax attention backward on the CPU: one piece of work a block of keys, five products for each block of queries.
//
// A piece keeps its keys' dk and dv in scratch, so these need no order. dq gets a share from every block of keys: the
// shares of a block of queries are added in ascending order of the key blocks, which a ticket counts, so the bits do
// not depend on the threads, even when a single head is all there is. Pieces are claimed in ascending order and wait
// only for earlier ones: the earliest unfinished piece never waits.
#include <sched.h>

#include "attention_block.h"

namespace longseq::cpu::LS_ISA {
namespace {

constexpr double kLog2E = 1.4426950408889634;

// Distance of two rows [keys of a block] of weights and score gradients: an odd number of cache lines.
constexpr int kScoreStride = kKeyBlock + 16;

// out[r][lane] = q[r, :] . k[:, lane] for a packed panel of keys.
template <int kR>
void score_tile(int64_t head_size, const float *q, const float *k, float *out) {
  constexpr int w = Vec::kWidth;
  register_tile<kR, 2, kHeadStride, 1, kPanel>(
      head_size, q, k, [](int, int) LS_LAMBDA_INLINE { return vec_zero(); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE { vec_store(out + r * kScoreStride + j * w, sum); });
}

// out[key][d] += sum over queries of weights[query][key] * x[query][d].
template <int kR, int kV>
void key_tile(int64_t queries, const float *weights, const float *x, float *out) {
  constexpr int w = Vec::kWidth;
  register_tile<kR, kV, 1, kScoreStride, kHeadStride>(
      queries, weights, x, [&](int r, int j) LS_LAMBDA_INLINE { return vec_load(out + r * kHeadStride + j * w); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE { vec_store(out + r * kHeadStride + j * w, sum); });
}

// out[query][d] += scale * sum over keys of ds[query][key] * k[key][d].
template <int kR, int kV>
void query_tile(int64_t keys, const float *ds, const float *k, const float *scale, float *out, int64_t stride) {
  constexpr int w = Vec::kWidth;
  LS_UNROLL
  for (int r = 0; r < kR; ++r) {
    __builtin_prefetch(out + r * stride, 1);
    __builtin_prefetch(out + r * stride + kV * w - 1, 1);
  }
  register_tile<kR, kV, kScoreStride, 1, kHeadStride>(
      keys, ds, k, [](int, int) LS_LAMBDA_INLINE { return vec_zero(); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE {
        float *o = out + r * stride + j * w;
        vec_store(o, vec_fma(vec_set(*scale), sum, vec_load(o)));
      });
}

struct Tiles {
  void (*score[kRows])(int64_t, const float *, const float *, float *);
  void (*key[2][kRows])(int64_t, const float *, const float *, float *);
  void (*query[2][kRows])(int64_t, const float *, const float *, const float *, float *, int64_t);
};

template <int kR>
constexpr void fill_tiles(Tiles &all) {
  all.score[kR - 1] = &score_tile<kR>;
  all.key[0][kR - 1] = &key_tile<kR, 1>;
  all.key[1][kR - 1] = &key_tile<kR, 2>;
  all.query[0][kR - 1] = &query_tile<kR, 1>;
  all.query[1][kR - 1] = &query_tile<kR, 2>;
  if constexpr (kR > 1) fill_tiles<kR - 1>(all);
}

constexpr Tiles make_tiles() {
  Tiles all{};
  fill_tiles<kRows>(all);
  return all;
}

constexpr Tiles kTiles = make_tiles();

struct Shape {
  Mask mask;
  int64_t heads, kv_heads, group, head_size;
  int64_t query_blocks, key_blocks;
};

// What lies in the workspace, in this order; each part starts on a cache line. Its size is
// workspace_attention_backward in native/runtime/ops/attention.cc.
struct Workspace {
  int32_t *tickets;  // [heads][query blocks]: blocks of keys that have added to dq, from the first that does
  const float *delta;
  int64_t delta_head, delta_row;  // strides
  float *made_delta;              // where delta was not given
  float *dq;                      // [Tq, N, D] float32 where dq is stored in bfloat16
};

int64_t align_line(int64_t bytes) { return ceil_div(bytes, 64) * 64; }

Workspace carve(const ls_exec *exec, const ls_attention_backward_args *args, const Shape &shape) {
  Workspace space{};
  char *at = reinterpret_cast<char *>(align_line(reinterpret_cast<intptr_t>(exec->workspace)));
  space.tickets = reinterpret_cast<int32_t *>(at);
  at += align_line(4 * shape.heads * shape.query_blocks);
  if (args->delta.present) {
    space.delta = static_cast<const float *>(args->delta.data);
    space.delta_head = args->delta.strides[0];
    space.delta_row = args->delta.strides[1];
  } else {
    space.made_delta = reinterpret_cast<float *>(at);
    space.delta = space.made_delta;
    space.delta_head = shape.mask.queries;
    space.delta_row = 1;
    at += align_line(4 * shape.heads * shape.mask.queries);
  }
  if (args->dq.dtype == LS_BF16) space.dq = reinterpret_cast<float *>(at);
  return space;
}

// The float32 head that shares of dq are added to.
Head dq_head(const ls_attention_backward_args *args, const Shape &shape, const Workspace &space, int64_t head) {
  if (space.dq == nullptr) return head_of(args->dq, head);
  return {reinterpret_cast<char *>(space.dq + head * shape.head_size), shape.heads * shape.head_size, false};
}

// Clears the tickets, makes delta, and brings dq to what the shares are added to. Row by row o is read before dq is
// written, which may be the same memory.
void prepare(const ls_attention_backward_args *args, const Shape &shape, const Workspace &space, int64_t block) {
  const int64_t begin = block * kQueryBlock, end = min_of(begin + kQueryBlock, shape.mask.queries);
  alignas(64) float o[kMaxHead], dout[kMaxHead];
  for (int64_t head = 0; head < shape.heads; ++head) {
    space.tickets[head * shape.query_blocks + block] = 0;
    const Head head_dq = dq_head(args, shape, space, head), stored = head_of(args->dq, head);
    for (int64_t i = begin; i < end; ++i) {
      if (space.made_delta != nullptr) {
        memset(o, 0, sizeof(o));
        memset(dout, 0, sizeof(dout));
        load_row(head_of(args->o, head), i, shape.head_size, o);
        load_row(head_of(args->dout, head), i, shape.head_size, dout);
        // One chain in the order in which the tiles make dP = dO . V: where a query attends a single key, o is v, delta
        // is dP to the last bit, and the score's gradient is the 0 that it ought to be, which AdamW would blow up.
        float sum = 0;
        for (int64_t d = 0; d < shape.head_size; ++d) sum = __builtin_fmaf(dout[d], o[d], sum);
        space.made_delta[head * shape.mask.queries + i] = sum;
      }
      float *dq = reinterpret_cast<float *>(head_dq.row(i));
      if (args->accumulate_dq == 0) {
        memset(dq, 0, static_cast<size_t>(shape.head_size) * 4);
      } else if (space.dq != nullptr) {
        const bf16 *s = reinterpret_cast<const bf16 *>(stored.row(i));
        for (int64_t d = 0; d < shape.head_size; ++d) dq[d] = to_float(s[d]);
      }
    }
  }
}

// The first block of queries in 0..query_blocks whose keys end behind `key` (ends) or start at or behind it (starts).
int64_t first_query_block(const Shape &shape, int64_t key, bool ends) {
  int64_t least = 0, most = shape.query_blocks;
  while (least < most) {
    const int64_t middle = least + (most - least) / 2, begin = middle * kQueryBlock;
    const KeyRange keys = shape.mask.keys(begin, min_of(begin + kQueryBlock, shape.mask.queries));
    if (ends ? keys.hi > key : keys.lo >= key) {
      most = middle;
    } else {
      least = middle + 1;
    }
  }
  return least;
}

// Gives up where another piece failed, whose ticket never comes.
void wait_ticket(const int32_t *ticket, int32_t turn, const bool *failed) {
  for (int64_t spins = 0; __atomic_load_n(ticket, __ATOMIC_ACQUIRE) != turn; ++spins) {
    if (__atomic_load_n(failed, __ATOMIC_RELAXED)) return;
    if (spins < 2000) {
      _mm_pause();
    } else {
      sched_yield();
    }
  }
}

// Scratch of a piece of work, in floats; every part is a multiple of a cache line.
struct Blocks {
  float *packed_k, *packed_v;  // panels [D][kPanel] of the keys
  float *k;                    // [keys][kHeadStride], as the ones below
  float *dk, *dv;
  float *q, *dout;      // of a block of queries
  float *weights, *ds;  // [queries][kScoreStride]
};

constexpr int64_t kRowsFloats = kKeyBlock * kHeadStride;
constexpr int64_t kPackedFloats = kMaxHead * kKeyBlock;
constexpr int64_t kScoreFloats = kQueryBlock * kScoreStride;
constexpr int64_t kScratchFloats = 2 * kPackedFloats + 5 * kRowsFloats + 2 * kScoreFloats;
static_assert(kKeyBlock == kQueryBlock && kKeyBlock % kPanel == 0);

Blocks carve_blocks(float *at) {
  Blocks b;
  b.packed_k = at;
  b.packed_v = b.packed_k + kPackedFloats;
  b.k = b.packed_v + kPackedFloats;
  b.dk = b.k + kRowsFloats;
  b.dv = b.dk + kRowsFloats;
  b.q = b.dv + kRowsFloats;
  b.dout = b.q + kRowsFloats;
  b.weights = b.dout + kRowsFloats;
  b.ds = b.weights + kScoreFloats;
  return b;
}

// Turns scores and dP of some rows and one panel of keys into weights and score gradients.
// Masked: lo, hi are each row's keys within the block. Capped: scores are limit * t, whose slope is 1 - t^2.
template <bool kMasked, bool kCapped>
__attribute__((noinline)) void differentiate(int64_t begin, int64_t end, int64_t column, const float *lse,
                                             const float *delta, const int32_t *lo, const int32_t *hi, float *weights,
                                             float *ds, float limit) {
  constexpr int w = Vec::kWidth;
  [[maybe_unused]] const Vec inverse = vec_set(1.0f / limit);
  for (int64_t r = begin; r < end; ++r) {
    const Vec base = vec_set(lse[r]), shift = vec_set(delta[r]);
    LS_UNROLL
    for (int j = 0; j < 2; ++j) {
      float *p = weights + r * kScoreStride + column + j * w, *g = ds + r * kScoreStride + column + j * w;
      const Vec score = vec_load(p);
      Vec weight = vec_exp2(vec_sub(score, base));
      Vec gradient = vec_mul(weight, vec_sub(vec_load(g), shift));
      if constexpr (kCapped) {
        const Vec t = vec_mul(score, inverse);
        gradient = vec_mul(gradient, vec_fnma(t, t, vec_set(1.0f)));
      }
      if constexpr (kMasked) {
        const int32_t first = static_cast<int32_t>(column + j * w);
        weight = vec_keep_range(weight, vec_zero(), first, lo[r], hi[r]);
        gradient = vec_keep_range(gradient, vec_zero(), first, lo[r], hi[r]);
      }
      vec_store(p, weight);
      vec_store(g, gradient);
    }
  }
}

// f(first column, vectors): a row [D] cut into two vectors at a time, the last maybe one.
template <class F>
LS_INLINE void for_column_tiles(int64_t head_size, F &&f) {
  for (int64_t d = 0; d < head_size; d += kPanel) f(d, head_size - d > Vec::kWidth ? 2 : 1);
}

// Which pairs of a block of queries and a block of keys attend; everything counts within the blocks.
struct Part {
  bool whole;                  // all of them
  int64_t begin, end;          // queries that attend some of the keys
  int64_t key_begin, key_end;  // keys that some of them attend
  // Keys of each query, where not whole. Both grow with the query.
  alignas(64) int32_t lo[kQueryBlock], hi[kQueryBlock];

  // Sets *from, *to to the queries that may attend any of the keys a..b-1; the others hold zeros there.
  void queries_of(int64_t a, int64_t b, int64_t *from, int64_t *to) const {
    *from = begin;
    *to = end;
    if (whole) return;
    while (*from < *to && hi[*from] <= a) ++*from;
    while (*to > *from && lo[*to - 1] >= b) --*to;
  }

  // Sets *from, *to to the keys that any of the queries a..b-1 may attend.
  void keys_of(int64_t a, int64_t b, int64_t *from, int64_t *to) const {
    *from = whole ? key_begin : max_of(key_begin, lo[a]);
    *to = whole ? key_end : min_of(key_end, hi[b - 1]);
  }
};

// Fills part; false where no query attends any of the keys.
bool find_part(const Mask &mask, int64_t first, int64_t queries, int64_t k0, int64_t keys, Part *part) {
  // The ends grow with the row: if the last row starts and the first row ends outside, every row attends all.
  part->whole = mask.keys(first + queries - 1).lo <= k0 && mask.keys(first).hi >= k0 + keys;
  part->begin = part->whole ? 0 : queries;
  part->end = part->whole ? queries : 0;
  part->key_begin = part->whole ? 0 : keys;
  part->key_end = part->whole ? keys : 0;
  if (part->whole) return true;
  for (int64_t r = 0; r < queries; ++r) {
    const KeyRange range = mask.keys(first + r);
    const int64_t from = min_of(max_of(range.lo - k0, 0), keys), to = min_of(max_of(range.hi - k0, 0), keys);
    part->lo[r] = static_cast<int32_t>(from);
    part->hi[r] = static_cast<int32_t>(to);
    if (from >= to) continue;
    part->begin = min_of(part->begin, r);
    part->end = r + 1;
    part->key_begin = min_of(part->key_begin, from);
    part->key_end = max_of(part->key_end, to);
  }
  return part->begin < part->end;
}

void add_dq(const Head &dq, int64_t first, int64_t head_size, const Part &part, float scale, const Blocks &b) {
  alignas(64) float edge[kRows * kPanel];
  for_column_tiles(head_size, [&](int64_t d, int vectors) {
    const int64_t width = vectors * Vec::kWidth;
    for_row_tiles(part.end - part.begin, [&](int64_t offset, int64_t rows) {
      const int64_t r = part.begin + offset;
      int64_t from, to;
      part.keys_of(r, r + rows, &from, &to);
      if (from >= to) return;
      float *out = reinterpret_cast<float *>(dq.row(first + r)) + d;
      const float *ds = b.ds + r * kScoreStride + from, *k = b.k + from * kHeadStride + d;
      const auto run = kTiles.query[vectors - 1][rows - 1];
      if (d + width <= head_size) {
        run(to - from, ds, k, &scale, out, dq.stride);
        return;
      }
      const int64_t tail = head_size - d;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t x = 0; x < tail; ++x) edge[i * kPanel + x] = out[i * dq.stride + x];
        for (int64_t x = tail; x < width; ++x) edge[i * kPanel + x] = 0.0f;
      }
      run(to - from, ds, k, &scale, edge, kPanel);
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t x = 0; x < tail; ++x) out[i * dq.stride + x] = edge[i * kPanel + x];
      }
    });
  });
}

// out[key, :] += sum over the queries of weights[query][key] * x[query, :].
void add_keys(int64_t head_size, const Part &part, const float *weights, const float *x, float *out) {
  for_column_tiles(head_size, [&](int64_t d, int vectors) {
    for_row_tiles(part.key_end - part.key_begin, [&](int64_t offset, int64_t count) {
      const int64_t key = part.key_begin + offset;
      int64_t from, to;
      part.queries_of(key, key + count, &from, &to);
      if (from >= to) return;
      kTiles.key[vectors - 1][count - 1](to - from, weights + from * kScoreStride + key, x + from * kHeadStride + d,
                                         out + key * kHeadStride + d);
    });
  });
}

void clear_scores(int64_t begin, int64_t end, int64_t column, float *scores) {
  for (int64_t r = begin; r < end; ++r) {
    LS_UNROLL
    for (int j = 0; j < 2; ++j) vec_store(scores + r * kScoreStride + column + j * Vec::kWidth, vec_zero());
  }
}

// Everything between one block of queries of one head and the keys of a piece, but for dq.
void differentiate_block(const ls_attention_backward_args *args, const Shape &shape, const Workspace &space,
                         int64_t head, int64_t first, const Part &part, const Blocks &b) {
  alignas(64) float lse[kQueryBlock], delta[kQueryBlock];
  const float *row_lse = static_cast<const float *>(args->lse.data) + head * args->lse.strides[0];
  for (int64_t r = part.begin; r < part.end; ++r) {
    const float natural = row_lse[(first + r) * args->lse.strides[1]];
    // A row without keys has no weights to make: any finite number does.
    lse[r] = natural == -__builtin_inff() ? 0.0f : static_cast<float>(natural * kLog2E);
    delta[r] = space.delta[head * space.delta_head + (first + r) * space.delta_row];
  }
  const float limit = static_cast<float>(args->softcap * kLog2E);
  const int64_t rows = part.end - part.begin;
  load_rows(head_of(args->q, head), first + part.begin, rows, shape.head_size, b.q + part.begin * kHeadStride);
  load_rows(head_of(args->dout, head), first + part.begin, rows, shape.head_size, b.dout + part.begin * kHeadStride);

  for (int64_t column = part.key_begin / kPanel * kPanel; column < part.key_end; column += kPanel) {
    const float *k = b.packed_k + column * shape.head_size, *v = b.packed_v + column * shape.head_size;
    int64_t from, to;
    part.queries_of(column, column + kPanel, &from, &to);
    for_row_tiles(to - from, [&](int64_t offset, int64_t count) {
      const int64_t r = from + offset;
      kTiles.score[count - 1](shape.head_size, b.q + r * kHeadStride, k, b.weights + r * kScoreStride + column);
    });
    for_row_tiles(to - from, [&](int64_t offset, int64_t count) {
      const int64_t r = from + offset;
      kTiles.score[count - 1](shape.head_size, b.dout + r * kHeadStride, v, b.ds + r * kScoreStride + column);
    });
    if (limit != 0.0f)
      for (int64_t r = from; r < to; ++r) cap_scores(b.weights + r * kScoreStride + column, kPanel, limit);
    const auto take = part.whole ? (limit != 0.0f ? &differentiate<false, true> : &differentiate<false, false>)
                                 : (limit != 0.0f ? &differentiate<true, true> : &differentiate<true, false>);
    take(from, to, column, lse, delta, part.lo, part.hi, b.weights, b.ds, limit);
    if (part.whole) continue;
    // Tiles of keys may lie across two panels, and then take the rows of both.
    clear_scores(part.begin, from, column, b.weights);
    clear_scores(part.begin, from, column, b.ds);
    clear_scores(to, part.end, column, b.weights);
    clear_scores(to, part.end, column, b.ds);
  }
  add_keys(shape.head_size, part, b.weights, b.dout, b.dv);
  add_keys(shape.head_size, part, b.ds, b.q, b.dk);
}

void differentiate_piece(const ls_attention_backward_args *args, const Shape &shape, const Workspace &space,
                         int64_t piece, const Blocks &b, const bool *failed) {
  // Neighbouring pieces are different heads, which never wait for each other.
  const int64_t kv_head = piece % shape.kv_heads, key_block = piece / shape.kv_heads;
  const int64_t k0 = key_block * kKeyBlock, keys = min_of(kKeyBlock, shape.mask.keys_count - k0);
  const float scale = static_cast<float>(args->scale);
  memset(b.dk, 0, static_cast<size_t>(keys * kHeadStride) * 4);
  memset(b.dv, 0, static_cast<size_t>(keys * kHeadStride) * 4);
  const int64_t from = first_query_block(shape, k0, true);
  const int64_t to = first_query_block(shape, k0 + kKeyBlock, false);
  if (from < to) {
    // Values first: their rows pass through the room of the keys.
    load_rows(head_of(args->v, kv_head), k0, keys, shape.head_size, b.k);
    for (int64_t p = 0; p < keys; p += kPanel) {
      transpose_panel(b.k + p * kHeadStride, min_of(kPanel, keys - p), shape.head_size, 1.0f,
                      b.packed_v + p * shape.head_size);
    }
    load_rows(head_of(args->k, kv_head), k0, keys, shape.head_size, b.k);
    for (int64_t p = 0; p < keys; p += kPanel) {
      transpose_panel(b.k + p * kHeadStride, min_of(kPanel, keys - p), shape.head_size,
                      static_cast<float>(args->scale * kLog2E), b.packed_k + p * shape.head_size);
    }
  }
  for (int64_t block = from; block < to; ++block) {
    const int64_t first = block * kQueryBlock, queries = min_of(kQueryBlock, shape.mask.queries - first);
    const KeyRange range = shape.mask.keys(first, first + queries);
    // Between blocks that attend these keys may lie one whose rows attend nothing at all.
    if (range.lo >= range.hi) continue;
    const int32_t turn = static_cast<int32_t>(key_block - range.lo / kKeyBlock);
    Part part;
    const bool any = find_part(shape.mask, first, queries, k0, keys, &part);
    for (int64_t g = 0; g < shape.group; ++g) {
      const int64_t head = kv_head * shape.group + g;
      if (any) differentiate_block(args, shape, space, head, first, part, b);
      int32_t *ticket = space.tickets + head * shape.query_blocks + block;
      wait_ticket(ticket, turn, failed);
      if (any) add_dq(dq_head(args, shape, space, head), first, shape.head_size, part, scale, b);
      __atomic_store_n(ticket, turn + 1, __ATOMIC_RELEASE);
    }
  }
  const bool accumulate = args->accumulate_dkv != 0;
  const Head dk = head_of(args->dk, kv_head), dv = head_of(args->dv, kv_head);
  for (int64_t r = 0; r < keys; ++r) {
    store_row(dk, k0 + r, shape.head_size, b.dk + r * kHeadStride, scale, accumulate);
    store_row(dv, k0 + r, shape.head_size, b.dv + r * kHeadStride, 1.0f, accumulate);
  }
}

}  // namespace

ls_status attention_backward(const ls_exec *exec, const ls_attention_backward_args *args) {
  Shape shape;
  shape.mask = mask_of(args);
  shape.heads = args->q.sizes[1];
  shape.kv_heads = args->k.sizes[1];
  shape.head_size = args->q.sizes[2];
  if (shape.head_size > kMaxHead) {
    return fail(exec, LS_UNSUPPORTED,
                "attention_backward: head size %lld is above %lld, the largest of the cpu backend",
                static_cast<long long>(shape.head_size), static_cast<long long>(kMaxHead));
  }
  if (shape.heads == 0 || shape.kv_heads == 0) return LS_OK;
  shape.group = shape.heads / shape.kv_heads;
  shape.query_blocks = ceil_div(shape.mask.queries, kQueryBlock);
  shape.key_blocks = ceil_div(shape.mask.keys_count, kKeyBlock);
  const Workspace space = carve(exec, args, shape);
  parallel_for(exec, shape.query_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) prepare(args, shape, space, block);
  });
  bool failed = false;
  parallel_for(exec, shape.key_blocks * shape.kv_heads, 1, [&](int64_t begin, int64_t end) {
    float *scratch = static_cast<float *>(thread_scratch().local.take(kScratchFloats * 4));
    if (scratch == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    const Blocks blocks = carve_blocks(scratch);
    for (int64_t piece = begin; piece < end; ++piece) differentiate_piece(args, shape, space, piece, blocks, &failed);
  });
  if (space.dq != nullptr) {
    parallel_for(exec, shape.mask.queries, 64, [&](int64_t begin, int64_t end) {
      for (int64_t head = 0; head < shape.heads; ++head) {
        const Head from = dq_head(args, shape, space, head), to = head_of(args->dq, head);
        for (int64_t i = begin; i < end; ++i) {
          store_row(to, i, shape.head_size, reinterpret_cast<const float *>(from.row(i)), 1.0f, false);
        }
      }
    });
  }
  return failed ? fail(exec, LS_OUT_OF_MEMORY, "attention_backward: the system gives no memory for a thread's blocks")
                : LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
