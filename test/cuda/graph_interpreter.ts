// Runs an operation graph of native/cuda/cudnn_graph.h on the CPU in float64, node by node, from its JSON.
//
// Memory is NaN until written. A packed document's rows end where it ends: reads behind it give NaN, writes are lost.
export interface GraphTensor {
  uid: number;
  name: string;
  type: string;
  sizes: number[];
  strides: number[];
  virtual: boolean;
  value?: number | string;
  ragged?: number;
  raggedMultiplier?: number;
  workspaceBytes?: number;
}

export interface GraphNode {
  op: string;
  name: string;
  mode?: string;
  axis?: number;
  ports: Record<string, number>;
  inner?: GraphNode[];
  innerX?: number;
  innerY?: number;
}

export interface AttentionGraph {
  q: number;
  k: number;
  v: number;
  o: number;
  lse: number;
  scale: number;
  dout: number;
  dq: number;
  dk: number;
  dv: number;
  lengthsQ: number;
  lengthsK: number;
  offsets: { uid: number; ofKeys: boolean; stride: number }[];
  graph: { workspaceBytes: number; tensors: GraphTensor[]; nodes: GraphNode[] };
}

/** A problem as it is given to cuDNN; the fields are those of CudnnAttention in native/runtime/ops/cudnn_attention.h. */
export interface Run extends AttentionGraph {
  documents: number;
  packed: boolean;
  totalK: number;
  firstKey: number;
  beginQ: number[];
  rowsQ: number[];
  beginK: number[];
  rowsK: number[];
  coversKeys: boolean;
  stageDq: boolean;
  stageDkv: boolean;
  workspaceBytes: number;
  offsetCount: number;
}

type Index = [number, number, number, number];

export class Interpreter {
  /** What each tensor's strides point into. */
  readonly memory = new Map<number, Float64Array>();
  readonly #attention: AttentionGraph;

  constructor(attention: AttentionGraph) {
    this.#attention = attention;
  }

  tensor(uid: number): GraphTensor {
    const tensor = this.#attention.graph.tensors[uid - 1];
    if (tensor?.uid !== uid) throw new Error(`no tensor ${uid}`);
    return tensor;
  }

  /** Fills in by-value numbers and memory that the caller did not give. */
  #prepare(): void {
    for (const t of this.#attention.graph.tensors) {
      if (this.memory.has(t.uid)) continue;
      if (t.value !== undefined) {
        this.memory.set(t.uid, Float64Array.of(t.value === "-inf" ? Number.NEGATIVE_INFINITY : Number(t.value)));
        continue;
      }
      if (!t.virtual && t.workspaceBytes === undefined) throw new Error(`nobody gave ${t.name}`);
      const end = t.sizes.reduce((sum, size, d) => sum + (size - 1) * (t.strides[d] as number), 1);
      const elements = t.workspaceBytes === undefined ? end : t.workspaceBytes / 4;
      // Ragged workspace must hold every document, else the whole box.
      if (t.workspaceBytes !== undefined && t.ragged === undefined && end > elements)
        throw new Error(`${t.name} needs ${end} elements, its workspace holds ${elements}`);
      this.memory.set(t.uid, new Float64Array(elements).fill(Number.NaN));
    }
  }

  #at(uid: number): Float64Array {
    return this.memory.get(uid) as Float64Array;
  }

  /** Where an element lies; -1 for what is behind the end of its document. */
  #address(t: GraphTensor, [b, h, i, j]: Index): number {
    const index = [b, h, i, j].map((x, d) => (t.sizes[d] === 1 ? 0 : x));
    const strides = t.strides;
    let start = (index[0] as number) * (strides[0] as number);
    if (t.ragged !== undefined) {
      const kind = this.#attention.offsets.find((o) => o.uid === t.ragged);
      if (!kind) throw new Error(`${t.name} has offsets of no kind`);
      const multiplier = t.raggedMultiplier ?? 1;
      const stride = kind.stride * multiplier;
      const rowDim = strides[2] === stride ? 2 : 3;
      if (strides[rowDim] !== stride) throw new Error(`${t.name}: offsets of stride ${stride} fit none of its dims`);
      const lengths = this.#at(kind.ofKeys ? this.#attention.lengthsK : this.#attention.lengthsQ);
      if ((index[rowDim] as number) >= (lengths[b] as number)) return -1;
      start = (this.#at(t.ragged)[b] as number) * multiplier;
    }
    return start + [1, 2, 3].reduce((sum, d) => sum + (index[d] as number) * (strides[d] as number), 0);
  }

  read(uid: number, index: Index): number {
    const at = this.#address(this.tensor(uid), index);
    const memory = this.#at(uid);
    if (at >= memory.length) throw new Error(`${this.tensor(uid).name}: element ${at} of ${memory.length} is read`);
    return at < 0 ? Number.NaN : (memory[at] as number);
  }

  write(uid: number, index: Index, value: number): void {
    const at = this.#address(this.tensor(uid), index);
    const memory = this.#at(uid);
    if (at >= memory.length) throw new Error(`${this.tensor(uid).name}: element ${at} of ${memory.length} is written`);
    if (at >= 0) memory[at] = value;
  }

  /** Writes f(index) to every element; of a packed document, one row and column behind its end stand for the rest. */
  #each(uid: number, f: (index: Index) => number): void {
    const { sizes } = this.tensor(uid);
    const { lengthsQ, lengthsK } = this.#attention;
    const [B, H] = sizes as Index;
    for (let b = 0; b < B; b++) {
      const rows =
        lengthsQ === 0 ? Infinity : Math.max(this.#at(lengthsQ)[b] as number, this.#at(lengthsK)[b] as number) + 1;
      // Graphs of packed documents are for 128 rows or more; what is shorter is the head size.
      const [I, J] = [2, 3].map((d) => ((sizes[d] as number) < 128 ? sizes[d] : Math.min(rows, sizes[d] as number)));
      for (let h = 0; h < H; h++)
        for (let i = 0; i < (I as number); i++)
          for (let j = 0; j < (J as number); j++) this.write(uid, [b, h, i, j], f([b, h, i, j]));
    }
  }

  run(): void {
    this.#prepare();
    for (const node of this.#attention.graph.nodes) this.#run(node);
  }

  #run(node: GraphNode): void {
    const { x = 0, b = 0, t = 0, y = 0 } = node.ports;
    switch (node.op) {
      case "pointwise":
        this.#pointwise(node, x, b, t, y);
        break;
      case "matmul":
        this.#matmul(node, x, b, y);
        break;
      case "reduce_add":
        this.#reduce(x, y);
        break;
      case "reshape":
        // A view: the same memory under other sizes and strides.
        this.memory.set(y, this.#at(x));
        break;
      case "band_mask":
        this.#bandMask(node, x, b, y);
        break;
      case "sdpa_forward":
        this.#attentionForward(node);
        break;
      default:
        throw new Error(`${node.op} is unknown`);
    }
  }

  #pointwise(node: GraphNode, x: number, b: number, t: number, y: number): void {
    const one = (f: (p: number) => number) => this.#each(y, (at) => f(this.read(x, at)));
    const two = (f: (p: number, q: number) => number) => this.#each(y, (at) => f(this.read(x, at), this.read(b, at)));
    switch (node.mode) {
      case "mul":
        two((p, q) => p * q);
        break;
      case "sub":
        two((p, q) => p - q);
        break;
      case "exp":
        one(Math.exp);
        break;
      case "identity":
        one((p) => p);
        break;
      case "lt":
        two((p, q) => Number(p < q));
        break;
      case "and":
        two((p, q) => Number(p !== 0 && q !== 0));
        break;
      case "index":
        this.#each(y, (at) => at[node.axis as number] as number);
        break;
      case "select":
        this.#each(y, (at) => (this.read(t, at) !== 0 ? this.read(x, at) : this.read(b, at)));
        break;
      default:
        throw new Error(`pointwise ${node.mode} is unknown`);
    }
  }

  /** y = x b within the lengths given; x's and b's heads are shared by consecutive heads of y. */
  #matmul(node: GraphNode, x: number, b: number, y: number): void {
    const inner = this.tensor(x).sizes[3] as number;
    const limit = (port: string, batch: number, whole: number) =>
      node.ports[port] === undefined ? whole : this.read(node.ports[port], [batch, 0, 0, 0]);
    const [B, H, M, N] = this.tensor(y).sizes as Index;
    if (this.tensor(b).sizes[2] !== inner || this.tensor(x).sizes[2] !== M || this.tensor(b).sizes[3] !== N)
      throw new Error(`${node.name}: sizes do not fit`);
    const ofX = H / (this.tensor(x).sizes[1] as number);
    const ofB = H / (this.tensor(b).sizes[1] as number);
    for (let batch = 0; batch < B; batch++) {
      const [m, n, k] = [limit("m", batch, M), limit("n", batch, N), limit("k", batch, inner)];
      for (let h = 0; h < H; h++)
        for (let i = 0; i < m; i++)
          for (let j = 0; j < n; j++) {
            let sum = 0;
            for (let l = 0; l < k; l++)
              sum +=
                this.read(x, [batch, Math.floor(h / ofX), i, l]) * this.read(b, [batch, Math.floor(h / ofB), l, j]);
            this.write(y, [batch, h, i, j], sum);
          }
    }
  }

  /** Sums each dim in which y is smaller, over as many consecutive elements as x has for one of y. */
  #reduce(x: number, y: number): void {
    const from = this.tensor(x).sizes;
    const share = this.tensor(y).sizes.map((size, d) => (from[d] as number) / size) as Index;
    this.#each(y, ([b, h, i, j]) => {
      let sum = 0;
      for (let p = 0; p < share[1]; p++)
        for (let q = 0; q < share[3]; q++) sum += this.read(x, [b, h * share[1] + p, i, j * share[3] + q]);
      return sum;
    });
  }

  /** Right bound: keeps row + columns - rows + shift >= column. Left bound: keeps column + left - columns + rows > row. */
  #bandMask(node: GraphNode, x: number, b: number, y: number): void {
    const { rows, columns, left_bound: left, shift_right_bound: right } = node.ports;
    const get = (uid: number | undefined, batch: number) => (uid === undefined ? 0 : this.read(uid, [batch, 0, 0, 0]));
    this.#each(y, (at) => {
      const [batch, , row, column] = at;
      const shift = get(columns, batch) - get(rows, batch);
      const [p, q] =
        left === undefined ? [row + shift + get(right, batch), column] : [column + get(left, batch) - shift, row];
      const keep = node.mode === "ge" ? p >= q : p > q;
      return keep ? this.read(x, at) : this.read(b, at);
    });
  }

  #attentionForward(node: GraphNode): void {
    const { query = 0, key = 0, value = 0, y = 0, stats = 0, scale = 0, rows, columns } = node.ports;
    const factor = this.read(scale, [0, 0, 0, 0]);
    const [B, N, Tq, D] = this.tensor(query).sizes as Index;
    const [, K, Tk] = this.tensor(key).sizes as Index;
    const kvHead = (h: number) => Math.floor((h * K) / N);
    const rowsOf = (b: number) => (rows === undefined ? Tq : this.read(rows, [b, 0, 0, 0]));
    const columnsOf = (b: number) => (columns === undefined ? Tk : this.read(columns, [b, 0, 0, 0]));
    const score = ([b, h, i, j]: Index) => {
      if (i >= rowsOf(b) || j >= columnsOf(b)) return Number.NEGATIVE_INFINITY;
      let sum = 0;
      for (let d = 0; d < D; d++) sum += this.read(query, [b, h, i, d]) * this.read(key, [b, kvHead(h), j, d]);
      return sum * factor;
    };
    let masked = score;
    if (node.inner !== undefined) {
      this.#each(node.innerX as number, score);
      for (const inner of node.inner) this.#run(inner);
      masked = (at) => this.read(node.innerY as number, at);
    }
    for (let b = 0; b < B; b++)
      for (let h = 0; h < N; h++)
        for (let i = 0; i < rowsOf(b); i++) {
          const row = Array.from({ length: columnsOf(b) }, (_, j) => masked([b, h, i, j]));
          const top = Math.max(...row);
          const total = row.reduce((sum, s) => sum + Math.exp(s - top), 0);
          const lse = top + Math.log(total);
          this.write(stats, [b, h, i, 0], lse);
          for (let d = 0; d < D; d++)
            this.write(
              y,
              [b, h, i, d],
              row.reduce((sum, s, j) => sum + Math.exp(s - lse) * this.read(value, [b, kvHead(h), j, d]), 0),
            );
        }
  }
}
