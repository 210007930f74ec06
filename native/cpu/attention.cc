// Softmax attention forward on the CPU: FlashAttention's online softmax over blocks of keys, queries in vector lanes.
//
// Scores are made transposed, [keys, queries]: maxima, exponentials and sums then run down the lanes, the score panel
// is at once the packed operand of the product with v, and neither k nor v needs packing. Each lane is one query row on
// its own, so the bits depend on neither the width of the vectors nor the neighbours.
#include <math.h>

#include "attention_block.h"

namespace longseq::cpu::LS_ISA {
namespace {

// Query rows of one piece of work, all heads together, and the most heads of a group that share it.
constexpr int64_t kPieceRows = 256;
constexpr int64_t kPieceHeads = 8;

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// scores[r][lane] = k[r, :] . q[:, lane]; raises top[lane] to the maximum.
template <int kR>
void score_tile(int64_t head_size, const float *k, const float *q, float *scores, float *top) {
  constexpr int w = Vec::kWidth;
  register_tile<kR, 2, kHeadStride, 1, kPanel>(
      head_size, k, q, [](int, int) LS_LAMBDA_INLINE { return vec_zero(); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE {
        vec_store(scores + r * kPanel + j * w, sum);
        // max(NaN, x) is x and max(x, NaN) is NaN: a NaN score may lose here, but its exponential does not.
        vec_store(top + j * w, vec_max(vec_load(top + j * w), sum));
      });
}

// out[d][lane] = out[d][lane] * rescale[lane] + sum over keys of v[key, d] * weights[key][lane].
template <int kR>
void value_tile(int64_t keys, const float *v, const float *weights, const float *rescale, float *out) {
  constexpr int w = Vec::kWidth;
  register_tile<kR, 2, 1, kHeadStride, kPanel>(
      keys, v, weights,
      [&](int r, int j)
          LS_LAMBDA_INLINE { return vec_mul(vec_load(out + r * kPanel + j * w), vec_load(rescale + j * w)); },
      [&](int r, int j, Vec sum) LS_LAMBDA_INLINE { vec_store(out + r * kPanel + j * w, sum); });
}

struct Tiles {
  void (*score[kRows])(int64_t, const float *, const float *, float *, float *);
  void (*value[kRows])(int64_t, const float *, const float *, const float *, float *);
};

template <int kR>
constexpr void fill_tiles(Tiles &all) {
  all.score[kR - 1] = &score_tile<kR>;
  all.value[kR - 1] = &value_tile<kR>;
  if constexpr (kR > 1) fill_tiles<kR - 1>(all);
}

constexpr Tiles make_tiles() {
  Tiles all{};
  fill_tiles<kRows>(all);
  return all;
}

constexpr Tiles kTiles = make_tiles();

// kPanel query rows of one head on their way over the keys.
struct Panel {
  int64_t head, first, rows;
  int64_t lo[kPanel], hi[kPanel];  // keys of each lane
  int64_t lo_least, lo_most, hi_least, hi_most;
  alignas(64) float top[kPanel], sum[kPanel];  // running maximum (log2 units) and sum of the exponentials
  float *q, *out;                              // [D][kPanel]
};

struct Shape {
  Mask mask;
  int64_t heads, kv_heads, group, head_size;
  int64_t piece_heads, piece_queries;  // of one piece of work
  int64_t group_parts, query_parts;    // pieces along a group's heads and along the queries
};

int64_t padded_head(int64_t head_size) { return ceil_div(head_size, 16) * 16; }

// Scores, weights and their product with v for one panel and the keys k0..k1-1, whose rows start at k and v.
// cap (log2 units): scores become cap * tanh(score / cap); 0: they stay.
void advance(Panel &panel, int64_t head_size, int64_t k0, int64_t k1, const float *k, const float *v, float *scores,
             float cap) {
  constexpr int w = Vec::kWidth;
  const int64_t begin = max_of(k0, panel.lo_least), end = min_of(k1, panel.hi_most), count = end - begin;
  if (count <= 0) return;
  k += (begin - k0) * kHeadStride;
  v += (begin - k0) * kHeadStride;
  alignas(64) float top[kPanel], rescale[kPanel];
  for (int j = 0; j < kPanel; ++j) top[j] = panel.top[j];
  const bool whole = panel.lo_most <= begin && panel.hi_least >= end;
  if (whole && cap == 0.0f) {
    for_row_tiles(count, [&](int64_t r, int64_t rows) {
      kTiles.score[rows - 1](head_size, k + r * kHeadStride, panel.q, scores + r * kPanel, top);
    });
  } else {
    alignas(64) float unused[kPanel] = {};
    for_row_tiles(count, [&](int64_t r, int64_t rows) {
      kTiles.score[rows - 1](head_size, k + r * kHeadStride, panel.q, scores + r * kPanel, unused);
    });
    if (cap != 0.0f) cap_scores(scores, count * kPanel, cap);
    alignas(64) int32_t lo[kPanel], hi[kPanel];
    for (int j = 0; j < kPanel; ++j) {
      lo[j] = static_cast<int32_t>(min_of(max_of(panel.lo[j] - begin, 0), count));
      hi[j] = static_cast<int32_t>(min_of(max_of(panel.hi[j] - begin, 0), count));
    }
    const Vec none = vec_set(-__builtin_inff());
    for (int half = 0; half < kPanel; half += w) {
      Vec most = vec_load(top + half);
      for (int64_t r = 0; r < count; ++r) {
        float *s = scores + r * kPanel + half;
        const Vec masked = vec_keep_inside(vec_load(s), none, static_cast<int32_t>(r), lo + half, hi + half);
        vec_store(s, masked);
        most = vec_max(most, masked);
      }
      vec_store(top + half, most);
    }
  }
  // Exponentials against the new maximum; where there is no key yet, against 0, which keeps them 0.
  Vec base[2], total[2];
  LS_UNROLL
  for (int j = 0; j < 2; ++j) {
    const Vec most = vec_load(top + j * w);
    base[j] = vec_replace_minus_infinity(most, vec_zero());
    vec_store(rescale + j * w, vec_exp2(vec_sub(vec_load(panel.top + j * w), base[j])));
    vec_store(panel.top + j * w, most);
    total[j] = vec_zero();
  }
  for (int64_t r = 0; r < count; ++r) {
    LS_UNROLL
    for (int j = 0; j < 2; ++j) {
      float *s = scores + r * kPanel + j * w;
      const Vec weight = vec_exp2(vec_sub(vec_load(s), base[j]));
      vec_store(s, weight);
      total[j] = vec_add(total[j], weight);
    }
  }
  LS_UNROLL
  for (int j = 0; j < 2; ++j) {
    vec_store(panel.sum + j * w, vec_fma(vec_load(panel.sum + j * w), vec_load(rescale + j * w), total[j]));
  }
  for_row_tiles(head_size, [&](int64_t d, int64_t rows) {
    kTiles.value[rows - 1](count, v + d, scores, rescale, panel.out + d * kPanel);
  });
}

// o and lse of one panel; rows is room for kPanel rows.
void finish(const ls_attention_args *args, const Panel &panel, int64_t head_size, float *rows) {
  constexpr int w = Vec::kWidth;
  alignas(64) float inverse[kPanel];
  for (int j = 0; j < kPanel; ++j) inverse[j] = panel.sum[j] == 0.0f ? 0.0f : 1.0f / panel.sum[j];
  for (int half = 0; half < kPanel; half += w) {
    const Vec factor = vec_load(inverse + half);
    for (int64_t d = 0; d < head_size; d += w) {
      Vec square[w];
      LS_UNROLL
      for (int i = 0; i < w; ++i) square[i] = vec_mul(factor, vec_load(panel.out + (d + i) * kPanel + half));
      transpose_store(square, rows + half * kHeadStride + d, kHeadStride);
    }
  }
  const Head o = head_of(args->o, panel.head);
  for (int64_t r = 0; r < panel.rows; ++r) {
    store_row(o, panel.first + r, head_size, rows + r * kHeadStride, 1.0f, false);
  }
  if (!args->lse.present) return;
  float *lse = static_cast<float *>(args->lse.data) + panel.head * args->lse.strides[0];
  for (int64_t r = 0; r < panel.rows; ++r) {
    const float sum = panel.sum[r];
    lse[(panel.first + r) * args->lse.strides[1]] =
        sum == 0.0f ? -__builtin_inff() : static_cast<float>(panel.top[r] * kLn2 + ::log(static_cast<double>(sum)));
  }
}

// Floats of scratch for a piece of work.
int64_t scratch_floats(const Shape &shape) {
  const int64_t panels = shape.piece_heads * ceil_div(shape.piece_queries, kPanel);
  const int64_t panel = padded_head(shape.head_size) * kPanel;
  return panels * (2 * panel + static_cast<int64_t>(sizeof(Panel) / 4) + 16) + 2 * kKeyBlock * kHeadStride +
         kKeyBlock * kPanel + 64;
}

void attend_piece(const ls_attention_args *args, const Shape &shape, int64_t piece, char *scratch) {
  const int64_t query_part = piece % shape.query_parts;
  const int64_t part = piece / shape.query_parts % shape.group_parts;
  const int64_t kv_head = piece / shape.query_parts / shape.group_parts;
  // The last queries attend the most keys under a causal mask: first come the heavy pieces.
  const int64_t first = (shape.query_parts - 1 - query_part) * shape.piece_queries;
  const int64_t queries = min_of(shape.piece_queries, shape.mask.queries - first);
  const int64_t heads = min_of(shape.piece_heads, shape.group - part * shape.piece_heads);
  const int64_t per_head = ceil_div(queries, kPanel), count = heads * per_head;
  const int64_t panel_floats = padded_head(shape.head_size) * kPanel;

  // Every part is a multiple of 64 bytes.
  float *k = reinterpret_cast<float *>(scratch);
  float *v = k + kKeyBlock * kHeadStride;
  float *scores = v + kKeyBlock * kHeadStride;
  float *panel_memory = scores + kKeyBlock * kPanel;
  Panel *panels = reinterpret_cast<Panel *>(panel_memory + 2 * count * panel_floats);

  const float scale = static_cast<float>(args->scale * kLog2E), cap = static_cast<float>(args->softcap * kLog2E);
  for (int64_t p = 0; p < count; ++p) {
    Panel &panel = panels[p];
    panel.head = kv_head * shape.group + part * shape.piece_heads + p / per_head;
    panel.first = first + p % per_head * kPanel;
    panel.rows = min_of(kPanel, first + queries - panel.first);
    panel.q = panel_memory + 2 * p * panel_floats;
    panel.out = panel.q + panel_floats;
    // k is free until the first block of keys.
    load_rows(head_of(args->q, panel.head), panel.first, panel.rows, shape.head_size, k);
    transpose_panel(k, panel.rows, shape.head_size, scale, panel.q);
    memset(panel.out, 0, static_cast<size_t>(panel_floats) * 4);
    panel.lo_least = panel.hi_least = shape.mask.keys_count;
    panel.lo_most = panel.hi_most = 0;
    for (int64_t r = 0; r < kPanel; ++r) {
      // Lanes behind the last row do as that row does, so that they never make a whole block a masked one.
      const KeyRange keys = shape.mask.keys(panel.first + min_of(r, panel.rows - 1));
      panel.lo[r] = keys.lo;
      panel.hi[r] = keys.hi;
      panel.lo_least = min_of(panel.lo_least, keys.lo);
      panel.lo_most = max_of(panel.lo_most, keys.lo);
      panel.hi_least = min_of(panel.hi_least, keys.hi);
      panel.hi_most = max_of(panel.hi_most, keys.hi);
      panel.top[r] = -__builtin_inff();
      panel.sum[r] = 0.0f;
    }
  }

  const Head head_k = head_of(args->k, kv_head), head_v = head_of(args->v, kv_head);
  const KeyRange all = shape.mask.keys(first, first + queries);
  for (int64_t block = all.lo / kKeyBlock * kKeyBlock; block < all.hi; block += kKeyBlock) {
    const int64_t k0 = max_of(block, all.lo), k1 = min_of(block + kKeyBlock, all.hi);
    if (k0 >= k1) continue;
    load_rows(head_k, k0, k1 - k0, shape.head_size, k);
    load_rows(head_v, k0, k1 - k0, shape.head_size, v);
    for (int64_t p = 0; p < count; ++p) advance(panels[p], shape.head_size, k0, k1, k, v, scores, cap);
  }
  for (int64_t p = 0; p < count; ++p) finish(args, panels[p], shape.head_size, k);
}

}  // namespace

ls_status attention(const ls_exec *exec, const ls_attention_args *args) {
  Shape shape;
  shape.mask = mask_of(args);
  shape.heads = args->q.sizes[1];
  shape.kv_heads = args->k.sizes[1];
  shape.head_size = args->q.sizes[2];
  if (shape.head_size > kMaxHead) {
    return fail(exec, LS_UNSUPPORTED, "attention: head size %lld is above %lld, the largest of the cpu backend",
                static_cast<long long>(shape.head_size), static_cast<long long>(kMaxHead));
  }
  if (shape.mask.queries == 0 || shape.heads == 0) return LS_OK;
  shape.group = shape.heads / shape.kv_heads;
  shape.piece_heads = min_of(shape.group, kPieceHeads);
  shape.piece_queries = max_of(32, kPieceRows / shape.piece_heads / 32 * 32);
  shape.group_parts = ceil_div(shape.group, shape.piece_heads);
  shape.query_parts = ceil_div(shape.mask.queries, shape.piece_queries);
  const int64_t bytes = scratch_floats(shape) * 4;
  bool failed = false;
  parallel_for(exec, shape.kv_heads * shape.group_parts * shape.query_parts, 1, [&](int64_t begin, int64_t end) {
    char *scratch = static_cast<char *>(thread_scratch().local.take(bytes));
    if (scratch == nullptr) {
      __atomic_store_n(&failed, true, __ATOMIC_RELAXED);
      return;
    }
    for (int64_t piece = begin; piece < end; ++piece) attend_piece(args, shape, piece, scratch);
  });
  return failed ? fail(exec, LS_OUT_OF_MEMORY, "attention: the system gives no memory for a thread's blocks") : LS_OK;
}

}  // namespace longseq::cpu::LS_ISA
