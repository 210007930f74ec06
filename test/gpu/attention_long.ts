// Causal attention of a Llama-8B layer (32/8 heads of 128, bfloat16) at one length, forward and backward, on both engines
// with the same inputs: sampled rows against float64, every element written, and the engines against each other over all
// elements.
//
//   node test/gpu/attention_long.js TOKENS [ENGINE]      with one engine named the other is left out
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import type { Device } from "../../lib/index.js";
import { distance, tolerance } from "../ops/strided.js";
import { type Engine, openWith, Pool, seed, small, squares } from "./device.js";

const asked = Number(process.argv[2]);
const T = small ? Math.ceil(asked / 1024) : asked;
const [N, K, D] = small ? [4, 2, 64] : [32, 8, 128];
const group = N / K;
const scale = 1 / Math.sqrt(D);
const { ops } = binding;
t.setTimeout(0);

// Where there is no GPU both are the same.
const engines: Engine[] = process.argv[3] ? [process.argv[3] as Engine] : ["cudnn", "native"];

/** Rows [begin, end) of one head of [T, heads, D], as float32. */
async function rows(
  device: Device,
  tensor: NativeTensor,
  heads: number,
  head: number,
  begin: number,
  end = begin + 1,
): Promise<Float32Array> {
  const near = new Pool(device);
  const out = new Float32Array((end - begin) * D);
  const step = 65_536;
  for (let at = begin; at < end; at += step) {
    const count = Math.min(step, end - at);
    const block = near.empty([count, D]);
    ops.copy(near.view(tensor, [count, D], [heads * D, 1], (at * heads + head) * D), block);
    const raw = new Uint16Array(await binding.read(block));
    const bits = new Uint32Array(out.buffer, (at - begin) * D * 4, count * D);
    for (let i = 0; i < raw.length; i++) bits[i] = (raw[i] as number) << 16;
    near.free();
  }
  return out;
}
async function logs(
  device: Device,
  tensor: NativeTensor,
  head: number,
  begin: number,
  end: number,
): Promise<Float32Array> {
  const near = new Pool(device);
  const block = near.empty([end - begin], "float32");
  ops.copy(near.view(tensor, [end - begin], [1], head * T + begin), block);
  const values = new Float32Array(await binding.read(block));
  near.free();
  return values;
}

const dot = (a: ArrayLike<number>, aAt: number, b: ArrayLike<number>, bAt: number): number => {
  let sum = 0;
  for (let d = 0; d < D; d++) sum += (a[aAt + d] as number) * (b[bAt + d] as number);
  return sum;
};

/** o, log-sum-exp and dq of one query, from k and v of the keys it sees; stored: its o as the forward left it. */
function query(q: Float32Array, dout: Float32Array, stored: Float32Array, k: Float32Array, v: Float32Array) {
  const keys = k.length / D;
  const scores = new Float64Array(keys);
  let most = Number.NEGATIVE_INFINITY;
  for (let j = 0; j < keys; j++) {
    scores[j] = scale * dot(q, 0, k, j * D);
    most = Math.max(most, scores[j] as number);
  }
  let total = 0;
  for (const score of scores) total += Math.exp(score - most);
  const lse = most + Math.log(total);
  const [o, dq] = [new Float64Array(D), new Float64Array(D)];
  for (let j = 0; j < keys; j++) {
    const p = Math.exp((scores[j] as number) - lse);
    for (let d = 0; d < D; d++) o[d] = (o[d] as number) + p * (v[j * D + d] as number);
  }
  const delta = dot(stored, 0, dout, 0);
  for (let j = 0; j < keys; j++) {
    const p = Math.exp((scores[j] as number) - lse);
    const ds = scale * p * (dot(dout, 0, v, j * D) - delta);
    for (let d = 0; d < D; d++) dq[d] = (dq[d] as number) + ds * (k[j * D + d] as number);
  }
  return { o, lse, dq };
}

/** Both ends, tile edges, and one at random; 2^31 elements of q end at row 524,288. */
const queries = [0, 127, 128, Math.floor(T / 3) + (seed % 97), T - 513, T - 1].filter((i) => i >= 0 && i < T);
/** Keys that not too many queries see. */
const keys = [...new Set([Math.max(0, T - 100_000), T - 129, T - 1])].filter((j) => j >= 0);
const outputs = ["o", "lse", "dq", "dk", "dv"] as const;
type Outputs = Record<(typeof outputs)[number], NativeTensor>;
/** Columns that an output's rows are projected to: their differences have the norm of the rows' differences, on average. */
const COLUMNS = 16;
type Sketch = Record<(typeof outputs)[number], Float32Array>;

async function timed(device: Device, run: () => void): Promise<number> {
  await device.synchronize();
  const began = performance.now();
  run();
  await device.synchronize();
  return (performance.now() - began) / 1000;
}

/** Everything of one engine, on a device of its own; what its outputs were, in short. */
async function engine(name: Engine): Promise<Sketch> {
  const device = openWith(name);
  const data = new Pool(device);
  console.log(`# ${name}: T ${T}, ${N}/${K} heads of ${D}, seed ${seed}, on ${device.info.name}`);
  // Scores of deviation 2: neither flat nor a single key.
  const q = data.random([T, N, D], "bfloat16", 2);
  const [k, v] = [data.random([T, K, D]), data.random([T, K, D])];
  const dout = data.random([T, N, D]);
  const y: Outputs = {
    o: data.poisoned([T, N, D]),
    lse: data.poisoned([N, T], "float32"),
    dq: data.poisoned([T, N, D]),
    dk: data.poisoned([T, K, D]),
    dv: data.poisoned([T, K, D]),
  };
  /** Root mean squares of whole outputs. */
  const sizes: Partial<Record<string, number>> = {};

  await t.test(`${name}: runs, forward and backward, and writes every element`, { timeout: 0 }, async (t) => {
    const pairs = (T * (T + 1)) / 2;
    device.resetPeaks();
    // A second one is warm; at the longest one takes half a minute.
    for (const pass of T > 2 ** 18 ? ["first"] : ["first", "second"]) {
      const forward = await timed(device, () => ops.attention(q, k, v, y.o, y.lse, null, scale, true, 0, 0, 0));
      const backward = await timed(device, () =>
        ops.attentionBackward(
          ...([q, k, v, y.o, y.lse, dout, null, y.dq, y.dk, y.dv, null] as const),
          ...([scale, true, 0, 0, 0, false, false, false] as const),
        ),
      );
      const rate = (flops: number, seconds: number) => (flops / seconds / 1e12).toFixed(1);
      console.log(
        `# ${name}, ${pass} run: forward ${(1000 * forward).toFixed(1)} ms (${rate(4 * N * D * pairs, forward)} TFLOP/s), ` +
          `backward ${(1000 * backward).toFixed(1)} ms (${rate(8 * N * D * pairs, backward)}), ` +
          `workspace ${device.memory().categoryPeak.workspace} bytes`,
      );
    }
    for (const what of outputs) {
      const sum = await squares(device, y[what]);
      sizes[what] = Math.sqrt(sum / (what === "lse" ? N * T : T * D * (/k|v/.test(what) ? K : N)));
      t.ok(Number.isFinite(sum) && sum > 0, `${what} is written throughout: its squares add up to ${sum}`);
    }
  });

  await t.test(`${name}: sampled rows are float64's`, { timeout: 0 }, async (t) => {
    for (const head of [0, N - 1]) {
      const of = Math.floor(head / group);
      const [kAll, vAll] = [await rows(device, k, K, of, 0, T), await rows(device, v, K, of, 0, T)];
      for (const i of queries) {
        const want = query(
          await rows(device, q, N, head, i),
          await rows(device, dout, N, head, i),
          await rows(device, y.o, N, head, i),
          kAll.subarray(0, (i + 1) * D),
          vAll.subarray(0, (i + 1) * D),
        );
        for (const what of ["o", "dq"] as const) {
          const got = Float64Array.from(await rows(device, y[what], N, head, i));
          // A row of few keys has a dq of nearly 0: the whole tensor's size counts too.
          const error = distance(got, want[what], "bfloat16", (sizes[what] ?? 0) / 4);
          t.ok(error <= tolerance(1, "bfloat16"), `${what} of head ${head}, row ${i}: off by ${error}`);
        }
        const log = (await logs(device, y.lse, head, i, i + 1))[0] as number;
        t.ok(
          Math.abs(log - want.lse) <= 2e-3,
          `log-sum-exp of head ${head}, row ${i}: ${log}, ${want.lse} was expected`,
        );
      }
    }
  });

  await t.test(`${name}: sampled rows of dk and dv are float64's`, { timeout: 0 }, async (t) => {
    const of = K - 1;
    const first = Math.min(...keys);
    const dk = keys.map(() => new Float64Array(D));
    const dv = keys.map(() => new Float64Array(D));
    const inputs: (readonly [Float32Array, Float32Array])[] = [];
    for (const j of keys) inputs.push([await rows(device, k, K, of, j), await rows(device, v, K, of, j)]);
    for (let head = of * group; head < (of + 1) * group; head++) {
      const [qs, os, douts] = [
        await rows(device, q, N, head, first, T),
        await rows(device, y.o, N, head, first, T),
        await rows(device, dout, N, head, first, T),
      ];
      const lse = await logs(device, y.lse, head, first, T);
      for (const [n, j] of keys.entries()) {
        const [kRow, vRow] = inputs[n] as readonly [Float32Array, Float32Array];
        const [toK, toV] = [dk[n] as Float64Array, dv[n] as Float64Array];
        for (let i = j; i < T; i++) {
          const at = (i - first) * D;
          const p = Math.exp(scale * dot(qs, at, kRow, 0) - (lse[i - first] as number));
          const ds = scale * p * (dot(douts, at, vRow, 0) - dot(os, at, douts, at));
          for (let d = 0; d < D; d++) {
            toV[d] = (toV[d] as number) + p * (douts[at + d] as number);
            toK[d] = (toK[d] as number) + ds * (qs[at + d] as number);
          }
        }
      }
    }
    for (const [n, j] of keys.entries())
      for (const [what, want] of [
        ["dk", dk[n]],
        ["dv", dv[n]],
      ] as const) {
        const got = Float64Array.from(await rows(device, y[what], K, of, j));
        const error = distance(got, want as Float64Array, "bfloat16", (sizes[what] ?? 0) / 4);
        t.ok(error <= tolerance(1, "bfloat16"), `${what} of head ${of}, row ${j}: off by ${error}`);
      }
  });

  const sketch = {} as Sketch;
  for (const what of outputs) {
    if (what === "lse") {
      const all = new Float32Array(N * T);
      for (let head = 0; head < N; head++) all.set(await logs(device, y.lse, head, 0, T), head * T);
      sketch.lse = all;
      continue;
    }
    const width = D * (/k|v/.test(what) ? K : N);
    const near = new Pool(device);
    const projected = near.empty([T, COLUMNS], "float32");
    ops.matmul(near.view(y[what], [T, width], [width, 1]), near.random([width, COLUMNS]), projected, null, 1, false);
    sketch[what] = new Float32Array(await binding.read(projected));
    near.free();
  }
  data.free();
  device.trim();
  return sketch;
}

const found: Sketch[] = [];
for (const name of engines)
  try {
    found.push(await engine(name));
  } catch (error) {
    t.fail(`${name}: ${(error as Error).message}`);
  }
if (engines.length > 1)
  await t.test("the engines agree over all elements", { timeout: 0 }, async (t) => {
    const [a, b] = found;
    if (a === undefined || b === undefined) return void t.fail("one of the engines did not run");
    for (const what of outputs) {
      let [off, norm] = [0, 0];
      for (const [i, value] of b[what].entries()) {
        off += ((a[what][i] as number) - value) ** 2;
        norm += value ** 2;
      }
      const share = Math.sqrt(off / norm);
      t.ok(share <= (what === "lse" ? 1e-4 : 1e-2), `${what}: ${share} of the norm apart`);
    }
  });
