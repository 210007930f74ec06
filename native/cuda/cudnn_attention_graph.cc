// The attention graphs, op by op, in the form that cuDNN's attention engines recognise.
#include "cudnn_attention_graph.h"

#include <cmath>

namespace longseq::cuda::cudnn {
namespace {

class Builder {
 public:
  explicit Builder(const Geometry &geometry) : g(geometry) {
    score_sizes = {g.documents, g.heads, g.rows_q, g.rows_k};
    score_strides = {g.heads * g.rows_q * g.rows_k, g.rows_q * g.rows_k, g.rows_k, 1};
    if (g.packed) {
      out.lengths_q = lengths("lengths_q");
      out.lengths_k = lengths("lengths_k");
    }
  }

  Graph &graph() { return out.graph; }

  // ---- tensors ----

  // Rows of q's or k's kind: [documents, heads, rows, D].
  Uid rows(const char *name, bool of_keys, int64_t heads, const RowStrides &strides) {
    const int64_t count = of_keys ? g.rows_k : g.rows_q;
    Tensor t;
    t.name = name;
    t.type = DataType::bf16;
    t.sizes = {g.documents, heads, count, g.head_size};
    t.strides = {count * strides.row, strides.head, strides.row, 1};
    t.ragged = offsets(of_keys, strides.row);
    return graph().add(t).uid;
  }

  // The same with the last two dims swapped, as the matrix products want it.
  Uid rows_transposed(const char *name, bool of_keys, int64_t heads, const RowStrides &strides) {
    const Uid uid = rows(name, of_keys, heads, strides);
    Tensor &t = graph().tensor(uid);
    std::swap(t.sizes[2], t.sizes[3]);
    std::swap(t.strides[2], t.strides[3]);
    return uid;
  }

  // One float32 a query row, [heads, total_q] in memory.
  Uid per_row(const char *name) {
    Tensor t;
    t.name = name;
    t.sizes = {g.documents, g.heads, g.rows_q, 1};
    t.strides = {g.heads * g.total_q, g.total_q, 1, 1};
    // Those of some heads of many begin anywhere, and so does each head where the rows are no multiple of four.
    t.alignment = 4;
    t.ragged = offsets(false, 1);
    return graph().add(t).uid;
  }

  Uid constant(const char *name, double value, DataType type = DataType::f32) {
    Tensor t;
    t.name = name;
    t.type = type;
    t.sizes = t.strides = {1, 1, 1, 1};
    t.by_value = true;
    t.value = value;
    return graph().add(t).uid;
  }

  Uid inner(const std::string &name, const Dims &sizes, const Dims &strides, DataType type = DataType::f32) {
    Tensor t;
    t.name = name;
    t.type = type;
    t.sizes = sizes;
    t.strides = strides;
    t.is_virtual = true;
    return graph().add(t).uid;
  }

  Uid scores(const std::string &name, DataType type = DataType::f32) {
    return inner(name, score_sizes, score_strides, type);
  }

  // ---- nodes ----

  Uid pointwise(const char *name, int32_t mode, Uid x, Uid b, Uid y, Uid t = 0, DataType compute = DataType::f32) {
    Node node{Op::pointwise, name, mode, -1, compute, {{Port::x, x}}, {}};
    if (b) node.ports.push_back({Port::b, b});
    if (t) node.ports.push_back({Port::t, t});
    node.ports.push_back({Port::y, y});
    nodes().push_back(node);
    return y;
  }

  Uid index(const char *name, int64_t axis, Uid x) {
    const Uid y = scores(name, DataType::i32);
    nodes().push_back(
        {Op::pointwise, name, POINTWISE_GEN_INDEX, axis, DataType::i32, {{Port::x, x}, {Port::y, y}}, {}});
    return y;
  }

  // y = x b; of packed documents only the rows and columns that are there.
  Uid matmul(const char *name, Uid x, Uid b, Uid y, Uid m, Uid n, Uid k) {
    Node node{Op::matmul, name, 0, -1, DataType::f32, {{Port::x, x}, {Port::b, b}, {Port::y, y}}, {}};
    if (m) node.ports.push_back({Port::m, m});
    if (n) node.ports.push_back({Port::n, n});
    if (k) node.ports.push_back({Port::k, k});
    nodes().push_back(node);
    return y;
  }

  Uid reduce(const char *name, Uid x, Uid y) {
    nodes().push_back({Op::reduce_add, name, 0, -1, DataType::f32, {{Port::x, x}, {Port::y, y}}, {}});
    return y;
  }

  Uid reshape(const char *name, Uid x, Uid y) {
    nodes().push_back({Op::reshape, name, 0, -1, DataType::f32, {{Port::x, x}, {Port::y, y}}, {}});
    return y;
  }

  // ---- masks ----

  // Scores outside a packed document become -inf. The forward operation does so by itself.
  Uid padding(Uid x) {
    if (!g.packed) return x;
    const Uid row = index("padding_row", 2, x), column = index("padding_column", 3, x);
    const Uid row_in = pointwise("row_in_document", POINTWISE_CMP_LT, row, out.lengths_q,
                                 scores("row_in_document", DataType::boolean), 0, DataType::boolean);
    const Uid column_in = pointwise("column_in_document", POINTWISE_CMP_LT, column, out.lengths_k,
                                    scores("column_in_document", DataType::boolean), 0, DataType::boolean);
    const Uid both = pointwise("in_document", POINTWISE_LOGICAL_AND, row_in, column_in,
                               scores("in_document", DataType::boolean), 0, DataType::boolean);
    return pointwise("padding", POINTWISE_BINARY_SELECT, x, minus_infinity(), scores("padded"), both);
  }

  // Scores that the causal rule or the window forbids become -inf.
  Uid band(Uid x) {
    const bool bottom_right = g.packed ? g.bottom_right : g.shift != 0 && g.shift == g.rows_k - g.rows_q;
    // What neither alignment says is said as a number.
    const int64_t shift = g.packed || bottom_right ? 0 : g.shift;
    Uid rows = 0, columns = 0;
    const auto lengths = [&] {
      if (!bottom_right) return;
      rows = g.packed ? out.lengths_q : constant("rows_q", static_cast<double>(g.rows_q), DataType::i32);
      columns = g.packed ? out.lengths_k : constant("rows_k", static_cast<double>(g.rows_k), DataType::i32);
    };
    // Keeps row + (columns - rows) + right >= column.
    if (g.causal || g.window) {
      const int64_t right = shift + (g.causal ? 0 : g.window - 1);
      lengths();
      x = band_mask("right_bound", POINTWISE_CMP_GE, x, rows, columns, Port::shift_right_bound,
                    right ? constant("right", static_cast<double>(right), DataType::i32) : 0);
    }
    // Keeps column + left > row, with columns - rows taken off the column where lengths are tensors.
    if (g.window) {
      if (g.packed && bottom_right) {
        x = band_mask("left_bound", POINTWISE_CMP_GT, x, rows, columns, Port::left_bound,
                      constant("left", static_cast<double>(g.window), DataType::i32));
      } else {
        x = band_mask("left_bound", POINTWISE_CMP_GT, x, 0, 0, Port::left_bound,
                      constant("left", static_cast<double>(g.window - g.shift)));
      }
    }
    return x;
  }

  AttentionGraph out;
  const Geometry &g;
  // Where nodes go: the graph's, or those inside the forward operation.
  std::vector<Node> *target = nullptr;

 private:
  std::vector<Node> &nodes() { return target ? *target : graph().nodes; }

  Uid lengths(const char *name) {
    Tensor t;
    t.name = name;
    t.type = DataType::i32;
    t.sizes = {g.documents, 1, 1, 1};
    t.strides = {1, 1, 1, 1};
    return graph().add(t).uid;
  }

  // One offsets tensor serves all tensors of the same side and stride. 0 where documents are not packed.
  Uid offsets(bool of_keys, int64_t stride) {
    if (!g.packed) return 0;
    for (const Offsets &known : out.offsets)
      if (known.of_keys == of_keys && known.stride == stride) return known.uid;
    Tensor t;
    t.name = std::string(of_keys ? "offsets_k_" : "offsets_q_") + std::to_string(stride);
    t.type = DataType::i64;
    t.sizes = {g.documents + 1, 1, 1, 1};
    t.strides = {1, 1, 1, 1};
    out.offsets.push_back({graph().add(t).uid, of_keys, stride});
    return out.offsets.back().uid;
  }

  Uid minus_infinity() { return constant("minus_infinity", -INFINITY); }

  Uid band_mask(const char *name, int32_t mode, Uid x, Uid rows, Uid columns, Port bound, Uid value) {
    const Uid y = scores(name);
    Node node{Op::band_mask, name, mode, -1, DataType::f32, {{Port::x, x}, {Port::b, minus_infinity()}}, {}};
    if (rows) node.ports.push_back({Port::rows, rows});
    if (columns) node.ports.push_back({Port::columns, columns});
    if (value) node.ports.push_back({bound, value});
    node.ports.push_back({Port::y, y});
    nodes().push_back(node);
    return y;
  }

  Dims score_sizes, score_strides;
};

}  // namespace

AttentionGraph forward_graph(const Geometry &geometry) {
  Builder b(geometry);
  AttentionGraph &out = b.out;
  out.q = b.rows("q", false, geometry.heads, geometry.q);
  out.k = b.rows("k", true, geometry.kv_heads, geometry.k);
  out.v = b.rows("v", true, geometry.kv_heads, geometry.v);
  out.o = b.rows("o", false, geometry.heads, geometry.o);
  out.lse = b.per_row("lse");
  out.scale = b.constant("scale", 1);
  Node attention{Op::sdpa_forward, "attention", 0, -1, DataType::f32, {}, {}};
  attention.ports = {{Port::query, out.q}, {Port::key, out.k},     {Port::value, out.v},
                     {Port::y, out.o},     {Port::stats, out.lse}, {Port::scale, out.scale}};
  if (geometry.packed) {
    attention.ports.push_back({Port::rows, out.lengths_q});
    attention.ports.push_back({Port::columns, out.lengths_k});
  }
  if (geometry.causal || geometry.window) {
    b.target = &attention.inner;
    attention.inner_x = b.scores("scores");
    attention.inner_y = b.band(attention.inner_x);
    b.target = nullptr;
  }
  b.graph().nodes.push_back(attention);
  return std::move(b.out);
}

AttentionGraph backward_graph(const Geometry &geometry) {
  const Geometry &g = geometry;
  Builder b(g);
  AttentionGraph &out = b.out;
  out.q = b.rows("q", false, g.heads, g.q);
  out.k = b.rows_transposed("k", true, g.kv_heads, g.k);
  out.v = b.rows_transposed("v", true, g.kv_heads, g.v);
  out.o = b.rows("o", false, g.heads, g.o);
  out.lse = b.per_row("lse");
  out.dout = b.rows("dout", false, g.heads, g.dout);
  out.dq = b.rows("dq", false, g.heads, g.dq);
  out.dk = b.rows("dk", true, g.kv_heads, g.dk);
  out.dv = b.rows("dv", true, g.kv_heads, g.dv);
  if (g.dq_f32) b.graph().tensor(out.dq).type = DataType::f32;
  if (g.dkv_f32) b.graph().tensor(out.dk).type = b.graph().tensor(out.dv).type = DataType::f32;
  out.scale = b.constant("scale", 1);
  const Uid lq = out.lengths_q, lk = out.lengths_k;

  // delta = rowsum(dout * o)
  const Dims product_sizes = {g.documents, g.heads, g.rows_q, g.head_size};
  const Uid product = b.pointwise(
      "dout_o", POINTWISE_MUL, out.dout, out.o,
      b.inner("dout_o", product_sizes, {g.heads * g.rows_q * g.head_size, g.rows_q * g.head_size, g.head_size, 1}));
  const Uid row_sum =
      b.reduce("delta_sum", product,
               b.inner("delta_sum", {g.documents, g.heads, g.rows_q, 1}, {g.heads * g.rows_q, g.rows_q, 1, 1}));
  const Uid delta = b.per_row("delta");
  b.graph().place(delta, 4 * g.heads * g.total_q);
  b.pointwise("delta", POINTWISE_MUL, row_sum, b.constant("one", 1), delta);

  // P = exp(mask(scale q k^T - lse))
  Uid s = b.matmul("q_kt", out.q, out.k, b.scores("q_kt"), lq, lk, 0);
  s = b.pointwise("scaled", POINTWISE_MUL, s, out.scale, b.scores("scaled"));
  s = b.pointwise("minus_lse", POINTWISE_SUB, s, out.lse, b.scores("minus_lse"));
  s = b.band(b.padding(s));
  const Uid p = b.pointwise("p", POINTWISE_EXP, s, 0, b.scores("p"));

  // A [rows_q, rows_k] matrix transposed and rounded, as left operand of a product over the query rows.
  const auto transposed = [&](const char *name, Uid x) {
    return b.reshape(name, x,
                     b.inner(name, {g.documents, g.heads, g.rows_k, g.rows_q},
                             {g.heads * g.rows_q * g.rows_k, g.rows_q * g.rows_k, 1, g.rows_k}, DataType::bf16));
  };
  // y = x right, summed over each group of query heads where there are fewer key heads.
  const auto grouped = [&](const char *name, Uid x, Uid right, Uid y, const RowStrides &strides) {
    if (g.heads == g.kv_heads) {
      b.matmul(name, x, right, y, lk, 0, lq);
      return;
    }
    const int64_t group = g.heads / g.kv_heads;
    const std::string full_name = std::string(name) + "_full";
    Uid full;
    if (g.packed) {
      // In our workspace, with y's offsets times the group, which cuDNN multiplies by itself.
      full = b.rows(full_name.c_str(), true, g.heads, strides);
      Tensor &t = b.graph().tensor(full);
      t.strides[0] *= group;
      t.strides[2] *= group;
      t.ragged_multiplier = group;
      // Four bytes an element, as NVIDIA's own front end reserves for it, though the type is bfloat16.
      const int64_t elements = (g.total_k - 1) * t.strides[2] + (g.heads - 1) * t.strides[1] + g.head_size;
      b.graph().place(full, 4 * elements);
    } else {
      full = b.inner(full_name, {g.documents, g.heads, g.rows_k, g.head_size},
                     {g.heads * g.rows_k * g.head_size, g.rows_k * g.head_size, g.head_size, 1}, DataType::bf16);
    }
    b.matmul(name, x, right, full, lk, 0, lq);
    b.reduce((std::string(name) + "_sum").c_str(), full, y);
  };

  grouped("dv", transposed("p_transposed", p), out.dout, out.dv, g.dv);

  // dS = scale P (dout v^T - delta)
  Uid ds = b.matmul("dout_vt", out.dout, out.v, b.scores("dout_vt"), lq, lk, 0);
  ds = b.pointwise("minus_delta", POINTWISE_SUB, ds, delta, b.scores("minus_delta"));
  ds = b.pointwise("times_p", POINTWISE_MUL, ds, p, b.scores("times_p"));
  ds = b.pointwise("ds", POINTWISE_MUL, ds, out.scale, b.scores("ds"));
  grouped("dk", transposed("ds_transposed", ds), out.q, out.dk, g.dk);

  // dQ = dS K, in float32 until it is whole
  const Tensor &kt = b.graph().tensor(out.k);
  Tensor straight;
  straight.name = "k_straight";
  straight.type = DataType::bf16;
  straight.sizes = {kt.sizes[0], kt.sizes[1], kt.sizes[3], kt.sizes[2]};
  straight.strides = {kt.strides[0], kt.strides[1], kt.strides[3], kt.strides[2]};
  straight.ragged = kt.ragged;
  straight.is_virtual = true;
  const Uid k = b.reshape("k_straight", out.k, b.graph().add(straight).uid);
  Tensor sum;
  sum.name = "dq_sum";
  sum.sizes = product_sizes;
  int64_t elements = g.documents * g.heads * g.rows_q * g.head_size;
  sum.strides = {g.heads * g.rows_q * g.head_size, g.rows_q * g.head_size, g.head_size, 1};
  if (g.packed) {
    const Tensor &dq = b.graph().tensor(out.dq);
    sum.strides = dq.strides;
    sum.ragged = dq.ragged;
    elements = (g.total_q - 1) * g.dq.row + (g.heads - 1) * g.dq.head + g.head_size;
  }
  const Uid dq_sum = b.graph().add(sum).uid;
  b.graph().place(dq_sum, 4 * elements);
  b.matmul("dq_sum", ds, k, dq_sum, lq, 0, lk);
  b.pointwise("dq", POINTWISE_IDENTITY, dq_sum, 0, out.dq);
  return std::move(b.out);
}

}  // namespace longseq::cuda::cudnn
