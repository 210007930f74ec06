// Tensors of more than 2^31 elements that really are there: sampled rows on both sides of that element against plain
// references. On demand, for it takes up to 12 GiB and some minutes: npm run test:large, npm run check:gpu
import { availableParallelism } from "node:os";
import t, { type Test } from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { type DType, dtypeBytes, dtypeCode } from "../../lib/tensor/dtype.js";
import { Plain } from "./helpers.js";
import { distance, openDevice, tolerance } from "./strided.js";

const device = openDevice(availableParallelism());
const { ops } = binding;
const boundary = 2 ** 31;
const GiB = 2 ** 30;
binding.setLimit(device, 0, 16 * GiB);

/** Uninitialised; freed with the others of its test. */
function empty(made: NativeTensor[], shape: readonly number[], dtype: DType = "bfloat16"): NativeTensor {
  const tensor = binding.empty(device, shape, dtypeCode(dtype), 4, 0);
  made.push(tensor);
  return tensor;
}

/** Normal values, other ones for another seed; the same for an element wherever the tensor ends. */
function random(made: NativeTensor[], shape: readonly number[], seed: number, dtype: DType = "bfloat16"): NativeTensor {
  const tensor = empty(made, shape, dtype);
  ops.random(tensor, 0, 1, seed, 0, true);
  return tensor;
}

/** Rows [begin, end) of the first dim of a contiguous tensor, as numbers. */
async function rows(
  tensor: NativeTensor,
  shape: readonly number[],
  dtype: DType,
  begin: number,
  end = begin + 1,
): Promise<Float64Array> {
  const inner = shape.slice(1);
  const width = inner.reduce((a, b) => a * b, 1);
  const view = binding.view(tensor, [end - begin, width], [width, 1], begin * width);
  const near = new Plain(device, [end - begin, width], dtype, new Float64Array((end - begin) * width));
  ops.copy(view, near.native);
  const values = await near.values();
  near.free();
  binding.release(view);
  return values;
}

/** Runs a test and frees what it made; the memory it took at most must stay within what is allowed. */
function large(name: string, run: (t: Test, made: NativeTensor[]) => Promise<void>): void {
  t.test(name, async (t) => {
    const made: NativeTensor[] = [];
    binding.resetPeaks(device, 0);
    await run(t, made);
    await binding.synchronize(device);
    for (const tensor of made) binding.release(tensor);
    const { peak, live } = binding.memoryStats(device, 0);
    t.equal(live, 0);
    t.ok(peak <= 16 * GiB, `${(peak / GiB).toFixed(1)} GiB`);
    t.ok(peak >= dtypeBytes("bfloat16") * boundary, "more than 2^31 elements were there");
    binding.trim(device, 0);
  });
}

/** Both sides of element 2^31 where rows have `width` elements, both ends, and some between. */
const sample = (count: number, width: number): number[] => {
  const at = boundary / width;
  return [0, 1, Math.floor(at / 3), Math.ceil(at) - 2, Math.ceil(at) - 1, Math.ceil(at), Math.ceil(at) + 1, count - 1];
};

/** Two bfloat16 values, but for rounding. */
const close = (t: Test, got: Float64Array, want: Float64Array, what: string) => {
  const error = distance(got, want, "bfloat16");
  t.ok(error <= tolerance(1, "bfloat16"), `${what}: off by ${error}`);
};

large("copy, rows and columns, and 8 bits", async (t, made) => {
  // No power of two: element 2^31 lies within a row.
  const shape = [349_531, 6144 + 8];
  const [count, width] = shape as [number, number];
  const x = random(made, shape, 1);
  const y = empty(made, shape);
  ops.copy(x, y);
  for (const row of sample(count, width))
    t.same(await rows(y, shape, "bfloat16", row), await rows(x, shape, "bfloat16", row), `row ${row}`);
  // Every other column, backwards in memory order: a strided copy to the same places.
  ops.fill(y, 0);
  const [from, to] = [x, y].map((tensor) => binding.view(tensor, [width / 2, count], [2, width], 1));
  ops.copy(from as NativeTensor, to as NativeTensor);
  for (const row of sample(count, width)) {
    const original = await rows(x, shape, "bfloat16", row);
    t.same(
      await rows(y, shape, "bfloat16", row),
      original.map((value, i) => (i % 2 === 1 ? value : 0)),
      `odd columns of row ${row}`,
    );
  }
  made.push(from as NativeTensor, to as NativeTensor);
  const packedShape = [count, width + 2 * Math.ceil(width / 64)];
  const packed = empty(made, packedShape, "uint8");
  ops.quantize(x, packed, 0);
  ops.dequantize(packed, y, 0);
  for (const row of sample(count, width)) {
    const [got, want] = [await rows(y, shape, "bfloat16", row), await rows(x, shape, "bfloat16", row)];
    const worst = got.reduce((most, value, i) => Math.max(most, Math.abs(value - (want[i] as number))), 0);
    t.ok(worst > 0 && worst < 0.05, `8 bits, row ${row}: off by ${worst}`);
  }
});

large("sum of squares, norm and its backward", async (t, made) => {
  const shape = [524_291, 4096];
  const [count, width] = shape as [number, number];
  const x = random(made, shape, 2);
  const y = empty(made, shape);
  const weight = random(made, [width], 3, "float32");
  const dyRow = random(made, [width], 4);
  const eps = 1e-5;
  ops.rmsNorm(x, weight, y, eps);
  const w = await rows(weight, [1, width], "float32", 0);
  const dy = await rows(dyRow, [1, width], "bfloat16", 0);
  const inputs = new Map<number, Float64Array>();
  for (const row of sample(count, width)) {
    const values = await rows(x, shape, "bfloat16", row);
    inputs.set(row, values);
    const scale = 1 / Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / width + eps);
    const want = values.map((value, i) => value * scale * (w[i] as number));
    close(t, await rows(y, shape, "bfloat16", row), want, `norm of row ${row}`);
  }
  // One row of gradients for all: its stride is 0, and y has room for dx.
  const dyAll = binding.view(dyRow, shape, [0, 1], 0);
  made.push(dyAll);
  const dweight = [1, 2, 3].map(() => new Plain(device, [width], "float32", new Float64Array(width)));
  const halves = [
    [0, 200_000],
    [200_000, count],
  ] as const;
  ops.rmsNormBackward(x, weight, dyAll, y, (dweight[0] as Plain).native, eps, false);
  for (const [row, values] of inputs) {
    const scale = 1 / Math.sqrt(values.reduce((sum, value) => sum + value * value, 0) / width + eps);
    const dot = values.reduce((sum, value, i) => sum + value * (w[i] as number) * (dy[i] as number), 0);
    const want = values.map(
      (value, i) => scale * ((w[i] as number) * (dy[i] as number) - (value * scale * scale * dot) / width),
    );
    close(t, await rows(y, shape, "bfloat16", row), want, `dx of row ${row}`);
  }
  const squares = [1, 2].map(() => new Plain(device, [], "float64", [0]));
  ops.normSquared(x, (squares[0] as Plain).native);
  for (const [i, [begin, end]] of halves.entries()) {
    const part = (tensor: NativeTensor, stride: number) => {
      const view = binding.view(tensor, [end - begin, width], [stride, 1], begin * stride);
      made.push(view);
      return view;
    };
    const input = part(x, width);
    ops.rmsNormBackward(input, weight, part(dyAll, 0), part(y, width), (dweight[i + 1] as Plain).native, eps, false);
    ops.normSquared(input, (squares[1] as Plain).native);
  }
  const [whole, first, second] = await Promise.all(dweight.map((each) => each.values()));
  const summed = (first as Float64Array).map((value, i) => value + ((second as Float64Array)[i] as number));
  t.ok(distance(whole as Float64Array, summed) <= 1e-4, "dweight is that of the two parts");
  const [square, parts] = await Promise.all(squares.map(async (each) => (await each.values())[0] as number));
  t.ok(Math.abs((square as number) / (parts as number) - 1) <= 1e-9, "so is the sum of squares");
  t.ok(Math.abs((square as number) / (count * width) - 1) <= 1e-3, "of normal values");
  for (const each of [...dweight, ...squares]) each.free();
});

large("loss and its gradient", async (t, made) => {
  const shape = [65_543, 32_768];
  const [count, V] = shape as [number, number];
  const logits = random(made, shape, 5, "float32");
  const targets = Array.from({ length: count }, (_, i) => (i % 7 === 6 ? -100 : (i * 7919) % V));
  const labels = new Plain(device, [count], "int32", targets);
  const picked = sample(count, V);
  const before = new Map<number, Float64Array>();
  for (const row of picked) before.set(row, await rows(logits, shape, "float32", row));
  const losses = [1, 2].map(() => new Plain(device, [], "float64", [0]));
  const lse = empty(made, [count], "float32");
  // Without a gradient in two parts, then with it in place.
  for (const [begin, end] of [
    [0, 40_000],
    [40_000, count],
  ] as const) {
    const part = binding.view(logits, [end - begin, V], [V, 1], begin * V);
    const some = binding.view(labels.native, [end - begin], [1], begin);
    made.push(part, some);
    ops.crossEntropy(part, some, (losses[1] as Plain).native, null, null, null, 1);
  }
  ops.crossEntropy(logits, labels.native, (losses[0] as Plain).native, logits, lse, null, 0.5);
  for (const row of picked) {
    const values = before.get(row) as Float64Array;
    const most = values.reduce((a, b) => Math.max(a, b));
    const total = values.reduce((sum, value) => sum + Math.exp(value - most), 0);
    const target = targets[row] as number;
    const want = values.map((value, i) =>
      target < 0 ? 0 : 0.5 * (Math.exp(value - most) / total - (i === target ? 1 : 0)),
    );
    const error = distance(await rows(logits, shape, "float32", row), want);
    t.ok(error <= tolerance(V, "float32"), `gradient of row ${row}: off by ${error}`);
    const got = (await rows(lse, [count, 1], "float32", row))[0] as number;
    t.ok(Math.abs(got - (most + Math.log(total))) <= 1e-5, `log-sum-exp of row ${row}`);
  }
  const [whole, parts] = await Promise.all(losses.map(async (each) => (await each.values())[0] as number));
  t.ok(Math.abs((whole as number) / (parts as number) - 1) <= 1e-9, `${whole} in one piece, ${parts} in two`);
  for (const each of [labels, ...losses]) each.free();
});

/** softmax(q . k^T scale) . v of one query over some keys, and its log-sum-exp. */
function attend(q: Float64Array, k: Float64Array, v: Float64Array, D: number) {
  const keys = k.length / D;
  const scale = 1 / Math.sqrt(D);
  const scores = Array.from({ length: keys }, (_, j) => {
    let sum = 0;
    for (let d = 0; d < D; d++) sum += (q[d] as number) * (k[j * D + d] as number);
    return sum * scale;
  });
  const most = Math.max(...scores);
  const total = scores.reduce((sum, score) => sum + Math.exp(score - most), 0);
  const o = new Float64Array(D);
  for (const [j, score] of scores.entries())
    for (let d = 0; d < D; d++) o[d] = (o[d] as number) + (Math.exp(score - most) / total) * (v[j * D + d] as number);
  return { o, lse: most + Math.log(total) };
}

large("attention: queries and outputs beyond, a small window, and a chunk's columns of one buffer", async (t, made) => {
  const [T, N, D, window] = [524_293, 32, 128, 24];
  const scale = 1 / Math.sqrt(D);
  const q = random(made, [T, N, D], 6);
  const o = empty(made, [T, N, D]);
  const [k, v] = [7, 8].map((seed) => random(made, [T, 1, D], seed)) as [NativeTensor, NativeTensor];
  const lse = empty(made, [N, T], "float32");
  // The first and last heads are enough work; both write columns of the whole buffer, as head chunks do.
  for (const head of [0, N - 1]) {
    const columns = (tensor: NativeTensor) => {
      const view = binding.view(tensor, [T, 1, D], [N * D, D, 1], head * D);
      made.push(view);
      return view;
    };
    const logs = binding.view(lse, [1, T], [T, 1], head * T);
    made.push(logs);
    ops.attention(columns(q), k, v, columns(o), logs, null, scale, true, window, 0, 0);
    for (const row of sample(T, N * D)) {
      const first = Math.max(0, row - window + 1);
      const query = (await rows(q, [T, N * D], "bfloat16", row)).subarray(head * D, head * D + D);
      const want = attend(
        query,
        await rows(k, [T, D], "bfloat16", first, row + 1),
        await rows(v, [T, D], "bfloat16", first, row + 1),
        D,
      );
      const got = (await rows(o, [T, N * D], "bfloat16", row)).subarray(head * D, head * D + D);
      close(t, got, want.o, `head ${head}, token ${row}`);
      const log = (await rows(lse, [N * T, 1], "float32", head * T + row))[0] as number;
      t.ok(Math.abs(log - want.lse) <= 2e-3, `its log-sum-exp is ${log}, ${want.lse} was expected`);
    }
  }
});

large("attention: few queries behind keys and values beyond", async (t, made) => {
  const [keys, D, queries] = [boundary / 128 + 5, 128, 3];
  const scale = 1 / Math.sqrt(D);
  const k = random(made, [keys, 1, D], 9);
  const v = random(made, [keys, 1, D], 10);
  const q = random(made, [queries, 1, D], 11);
  const run = async (begin: number, end: number, window: number) => {
    const o = empty(made, [queries, 1, D], "bfloat16");
    const lse = empty(made, [1, queries], "float32");
    const [kPart, vPart] = [k, v].map((tensor) => binding.view(tensor, [end - begin, 1, D], [D, D, 1], begin * D));
    made.push(kPart as NativeTensor, vPart as NativeTensor);
    ops.attention(q, kPart as never, vPart as never, o, lse, null, scale, true, window, keys - queries, begin);
    return { o: await rows(o, [queries, D], "bfloat16", 0, queries), lse: await rows(lse, [1, queries], "float32", 0) };
  };
  const near = await run(0, keys, 40);
  for (let i = 0; i < queries; i++) {
    const last = keys - queries + i;
    const want = attend(
      await rows(q, [queries, D], "bfloat16", i),
      await rows(k, [keys, D], "bfloat16", last - 39, last + 1),
      await rows(v, [keys, D], "bfloat16", last - 39, last + 1),
      D,
    );
    close(t, near.o.subarray(i * D, i * D + D), want.o, `window, query ${i}`);
  }
  // All keys at once, and merged from two parts by their log-sum-exps.
  const whole = await run(0, keys, 0);
  const parts = [await run(0, 9_000_000, 0), await run(9_000_000, keys, 0)] as const;
  for (let i = 0; i < queries; i++) {
    const [a, b] = parts.map(({ lse }) => lse[i] as number) as [number, number];
    const merged = Math.max(a, b) + Math.log1p(Math.exp(-Math.abs(a - b)));
    t.ok(Math.abs((whole.lse[i] as number) - merged) <= 1e-4, `log-sum-exp ${whole.lse[i]}, merged ${merged}`);
    const want = Float64Array.from(
      { length: D },
      (_, d) =>
        Math.exp(a - merged) * (parts[0].o[i * D + d] as number) +
        Math.exp(b - merged) * (parts[1].o[i * D + d] as number),
    );
    close(t, whole.o.subarray(i * D, i * D + D), want, `all keys, query ${i}`);
  }
});
