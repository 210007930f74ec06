// The matrix products that the tests of matmul try, and how one is run.
import { binding } from "../../lib/binding.js";
import { deviceWith, type Layout, layout, Random, randomValues, type Storage, Strided } from "./strided.js";

/** rows: row-major; columns: column-major; both with gaps; spread: every second element. */
export type MatrixLayout = "rows" | "columns" | "rows with gaps" | "columns with gaps" | "spread";

export interface MatmulCase {
  batch: number[];
  m: number;
  n: number;
  k: number;
  aType: Storage;
  bType: Storage;
  cType: Storage;
  aLayout: MatrixLayout;
  bLayout: MatrixLayout;
  cLayout: MatrixLayout;
  /** One b for the whole batch, by strides of 0. */
  sharedB: boolean;
  bias: Storage | null;
  alpha: number;
  accumulate: boolean;
  seed: number;
}

const layouts: MatrixLayout[] = ["rows", "columns", "rows with gaps", "columns with gaps", "spread"];

/** Sizes around the edges of vectors, register tiles, panels and blocks; some 140 cases. */
export function matmulCases(): MatmulCase[] {
  const random = new Random(17);
  const small = [1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 16, 17, 28, 31, 32, 33, 47, 64, 65];
  const type = () => random.of<Storage>(["float32", "float32", "bfloat16"]);
  const one = (sizes: { m: number; n: number; k: number }, more: Partial<MatmulCase> = {}): MatmulCase => ({
    batch: [],
    ...sizes,
    aType: type(),
    bType: type(),
    cType: type(),
    aLayout: random.of(layouts),
    bLayout: random.of(layouts),
    cLayout: random.of(layouts),
    sharedB: false,
    bias: random.of<Storage | null>(["float32", "bfloat16", null, null]),
    alpha: random.of([1, 1, 0.5, -3]),
    accumulate: random.chance(0.4),
    seed: random.below(1 << 30),
    ...more,
  });
  const cases: MatmulCase[] = [];
  for (let i = 0; i < 90; i++) {
    const batch = random.of([[], [], [3], [2, 3], [7, 1]]);
    cases.push(
      one(
        { m: random.of(small), n: random.of(small), k: random.of(small) },
        { batch, sharedB: batch.length > 0 && random.chance(0.4) },
      ),
    );
  }
  for (let i = 0; i < 30; i++) {
    cases.push(
      one({ m: random.of([1, 3, 14, 40, 230]), n: random.of([1, 4, 31, 90]), k: random.of([511, 512, 513, 1300]) }),
    );
  }
  const plain = { aType: "float32", bType: "float32", cType: "float32", bias: null, alpha: 1 } as const;
  // More rows than a piece, more columns than a block, more depth than what is packed at once.
  cases.push(one({ m: 500, n: 130, k: 70 }, { ...plain, aLayout: "rows", bLayout: "columns", cLayout: "rows" }));
  cases.push(one({ m: 40, n: 2100, k: 600 }, { ...plain, aLayout: "rows", bLayout: "columns", cLayout: "rows" }));
  cases.push(one({ m: 60, n: 70, k: 9000 }, { ...plain, aLayout: "columns", bLayout: "rows", cLayout: "rows" }));
  cases.push(
    one({ m: 60, n: 700, k: 1600 }, { aLayout: "columns", bLayout: "rows", cLayout: "rows", cType: "bfloat16" }),
  );
  // Too deep for a shared packed b behind a bfloat16 c: tiles of their own.
  cases.push(
    one({ m: 90, n: 300, k: 4700 }, { aLayout: "rows", bLayout: "columns", cLayout: "rows", cType: "bfloat16" }),
  );
  cases.push(one({ m: 65, n: 66, k: 67 }, { ...plain, cLayout: "columns", accumulate: true }));
  cases.push(one({ m: 33, n: 35, k: 40 }, { ...plain, batch: [40], cLayout: "rows" }));
  return cases;
}

function matrix(batch: readonly number[], rows: number, columns: number, kind: MatrixLayout): Layout {
  const shape = [...batch, rows, columns];
  const outer = batch.map((_, i) => i);
  const at = batch.length;
  const byColumns = kind === "columns" || kind === "columns with gaps";
  const order = byColumns ? [...outer, at + 1, at] : [...outer, at, at + 1];
  if (kind === "spread") return layout(shape, order, 0, 2);
  return layout(shape, order, kind.endsWith("gaps") ? 3 : 0);
}

export interface MatmulRun {
  a: Float64Array;
  b: Float64Array;
  c: Float64Array;
  bias: Float64Array | null;
  out: Float64Array;
  raw: Float32Array | Uint16Array;
}

/** Runs a case; a, b, c and bias are the operands as stored, c what lay there before. */
export async function runMatmul(spec: MatmulCase, threads: number): Promise<MatmulRun> {
  const device = deviceWith(threads);
  const random = new Random(spec.seed);
  const { batch, m, n, k } = spec;
  const count = batch.reduce((x, y) => x * y, 1);
  const a = randomValues(random, count * m * k, spec.aType);
  const b = randomValues(random, (spec.sharedB ? 1 : count) * k * n, spec.bType);
  const c = randomValues(random, count * m * n, spec.cType);
  const bias = spec.bias ? randomValues(random, n, spec.bias) : null;
  const ta = Strided.from(device, [...batch, m, k], a, spec.aType, matrix(batch, m, k, spec.aLayout));
  const bBatch = spec.sharedB ? [] : batch;
  const tb = Strided.from(device, [...bBatch, k, n], b, spec.bType, matrix(bBatch, k, n, spec.bLayout));
  const shared = binding.view(tb.native, [...batch, k, n], [...batch.map(() => 0), ...tb.at.strides.slice(-2)], 0);
  const cLayout = matrix(batch, m, n, spec.cLayout);
  const tc = spec.accumulate
    ? Strided.from(device, [...batch, m, n], c, spec.cType, cLayout)
    : Strided.poisoned(device, [...batch, m, n], spec.cType, cLayout);
  const tBias = bias ? Strided.from(device, [n], bias, spec.bias as Storage) : null;
  binding.ops.matmul(
    ta.native,
    spec.sharedB ? shared : tb.native,
    tc.native,
    tBias?.native ?? null,
    spec.alpha,
    spec.accumulate,
  );
  const out = await tc.values();
  const raw = await tc.raw();
  binding.release(shared);
  for (const each of [ta, tb, tc, tBias]) each?.free();
  return { a, b, c, bias, out, raw };
}
