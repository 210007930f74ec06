// The attention problems that graphs are built for, as lines that test/native/cudnn/plans.cc reads.
export interface GraphCase {
  direction: "forward" | "backward";
  /** Of packed graphs the batch, else 1. */
  documents: number;
  rowsQ: number;
  rowsK: number;
  totalQ: number;
  totalK: number;
  heads: number;
  kvHeads: number;
  headSize: number;
  packed: boolean;
  causal: boolean;
  shift: number;
  bottomRight: boolean;
  window: number;
  pad: number;
}

/** One sequence of `rows` tokens, causal, unless said otherwise. */
export function graphCase(direction: "forward" | "backward", rows: number, more: Partial<GraphCase> = {}): GraphCase {
  const one: GraphCase = {
    direction,
    documents: 1,
    rowsQ: rows,
    rowsK: rows,
    totalQ: 0,
    totalK: 0,
    heads: 32,
    kvHeads: 8,
    headSize: 128,
    packed: false,
    causal: true,
    shift: 0,
    bottomRight: false,
    window: 0,
    pad: 0,
    ...more,
  };
  return { ...one, totalQ: more.totalQ ?? one.rowsQ, totalK: more.totalK ?? one.rowsK };
}

export function line(c: GraphCase): string {
  const numbers = [
    c.documents,
    c.rowsQ,
    c.rowsK,
    c.totalQ,
    c.totalK,
    c.heads,
    c.kvHeads,
    c.headSize,
    Number(c.packed),
    Number(c.causal),
    c.shift,
    Number(c.bottomRight),
    c.window,
    c.pad,
  ];
  return `${c.direction} ${numbers.join(" ")}`;
}

/** An attention call, as the op has it. */
export interface Problem {
  direction: "forward" | "backward";
  capability: number;
  rowsQ: number;
  rowsK: number;
  heads: number;
  kvHeads: number;
  headSize: number;
  causal: boolean;
  window: number;
  qOffset: number;
  kOffset: number;
  scale: number;
  pad: number;
  dqF32: boolean;
  dkvF32: boolean;
  accumulate: boolean;
  giveDelta: boolean;
  documents: number[] | null;
}

export function problemLine(p: Problem): string {
  const numbers = [
    p.capability,
    p.rowsQ,
    p.rowsK,
    p.heads,
    p.kvHeads,
    p.headSize,
    Number(p.causal),
    p.window,
    p.qOffset,
    p.kOffset,
    p.scale,
    p.pad,
    Number(p.dqF32),
    Number(p.dkvF32),
    Number(p.accumulate),
    Number(p.giveDelta),
    p.documents?.length ?? 0,
    ...(p.documents ?? []),
  ];
  return `${p.direction} ${numbers.join(" ")}`;
}
