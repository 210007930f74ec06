// Causal attention of a Llama-8B layer (32/8 heads of 128, bfloat16) at one length, forward and backward, on both engines:
// sampled rows against float64, every element written, and the engines against each other over all elements.
//
//   node test/gpu/attention_long.js TOKENS
import t from "tap";
import { binding, type NativeTensor } from "../../lib/binding.js";
import { distance, tolerance } from "../ops/strided.js";
import { openGpu, Pool, seed, small, squares } from "./device.js";

const asked = Number(process.argv[2]);
const T = small ? Math.ceil(asked / 1024) : asked;
const [N, K, D] = small ? [4, 2, 64] : [32, 8, 128];
const group = N / K;
const scale = 1 / Math.sqrt(D);
const device = openGpu();
const { ops } = binding;
t.setTimeout(0);

type Engine = "native" | "cudnn";
// cuDNN has nothing to run on elsewhere: there the engines are the same.
const engines: Engine[] = ["native", "cudnn"];

/** Rows [begin, end) of one head of [T, heads, D], as float32. */
async function rows(tensor: NativeTensor, heads: number, head: number, begin: number, end: number) {
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
const row = async (tensor: NativeTensor, heads: number, head: number, index: number) =>
  Float64Array.from(await rows(tensor, heads, head, index, index + 1));

async function logs(tensor: NativeTensor, head: number, begin: number, end: number): Promise<Float32Array> {
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
function query(q: Float64Array, dout: Float64Array, stored: Float64Array, k: Float32Array, v: Float32Array) {
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

const data = new Pool(device);
console.log(`# T ${T}, ${N}/${K} heads of ${D}, seed ${seed}, on ${device.info.name}`);
// Scores of deviation 2: neither flat nor a single key.
const q = data.random([T, N, D], "bfloat16", 2);
const [k, v] = [data.random([T, K, D]), data.random([T, K, D])];
const dout = data.random([T, N, D]);

interface Outputs {
  o: NativeTensor;
  lse: NativeTensor;
  dq: NativeTensor;
  dk: NativeTensor;
  dv: NativeTensor;
}
const outputs = (): Outputs => ({
  o: data.poisoned([T, N, D]),
  lse: data.poisoned([N, T], "float32"),
  dq: data.poisoned([T, N, D]),
  dk: data.poisoned([T, K, D]),
  dv: data.poisoned([T, K, D]),
});

async function timed(run: () => void): Promise<number> {
  await device.synchronize();
  const began = performance.now();
  run();
  await device.synchronize();
  return (performance.now() - began) / 1000;
}

const done = new Map<Engine, Outputs>();
/** Root mean square of a whole output. */
const sizes = new Map<NativeTensor, number>();
for (const engine of engines)
  await t.test(`${engine}: runs, forward and backward, and writes every element`, { timeout: 0 }, async (t) => {
    process.env.LONGSEQ_ATTENTION = device.type === "cuda" ? engine : "native";
    const y = outputs();
    const pairs = (T * (T + 1)) / 2;
    device.resetPeaks();
    for (const pass of ["first", "second"]) {
      const forward = await timed(() => ops.attention(q, k, v, y.o, y.lse, null, scale, true, 0, 0, 0));
      const backward = await timed(() =>
        ops.attentionBackward(
          ...([q, k, v, y.o, y.lse, dout, null, y.dq, y.dk, y.dv, null] as const),
          ...([scale, true, 0, 0, 0, false, false, false] as const),
        ),
      );
      const rate = (flops: number, seconds: number) => (flops / seconds / 1e12).toFixed(1);
      console.log(
        `# ${engine}, ${pass} run: forward ${(1000 * forward).toFixed(1)} ms (${rate(4 * N * D * pairs, forward)} TFLOP/s), ` +
          `backward ${(1000 * backward).toFixed(1)} ms (${rate(8 * N * D * pairs, backward)}), ` +
          `workspace ${device.memory().categoryPeak.workspace} bytes`,
      );
    }
    for (const [name, tensor] of Object.entries(y)) {
      const sum = await squares(device, tensor as NativeTensor);
      sizes.set(tensor as NativeTensor, Math.sqrt(sum / (name === "lse" ? N * T : T * D * (/k|v/.test(name) ? K : N))));
      t.ok(Number.isFinite(sum) && sum > 0, `${name} is written throughout: its squares add up to ${sum}`);
    }
    done.set(engine, y);
  });

/** Both ends, tile edges, and one at random; 2^31 elements of q end at row 524,288. */
const queries = [0, 127, 128, Math.floor(T / 3) + (seed % 97), T - 513, T - 1].filter((i) => i >= 0 && i < T);
for (const [engine, y] of done)
  await t.test(`${engine}: sampled rows are float64's`, { timeout: 0 }, async (t) => {
    for (const head of [0, N - 1]) {
      const of = Math.floor(head / group);
      const [kAll, vAll] = [await rows(k, K, of, 0, T), await rows(v, K, of, 0, T)];
      for (const i of queries) {
        const want = query(
          await row(q, N, head, i),
          await row(dout, N, head, i),
          await row(y.o, N, head, i),
          kAll.subarray(0, (i + 1) * D),
          vAll.subarray(0, (i + 1) * D),
        );
        for (const name of ["o", "dq"] as const) {
          // A row of few keys has a dq of nearly 0: the whole tensor's size counts too.
          const error = distance(await row(y[name], N, head, i), want[name], "bfloat16", (sizes.get(y[name]) ?? 0) / 4);
          t.ok(error <= tolerance(1, "bfloat16"), `${name} of head ${head}, row ${i}: off by ${error}`);
        }
        const log = (await logs(y.lse, head, i, i + 1))[0] as number;
        t.ok(
          Math.abs(log - want.lse) <= 2e-3,
          `log-sum-exp of head ${head}, row ${i}: ${log}, ${want.lse} was expected`,
        );
      }
    }
  });

/** Keys that not too many queries see. */
const keys = [...new Set([Math.max(0, T - 100_000), T - 129, T - 1])].filter((j) => j >= 0);
for (const [engine, y] of done)
  await t.test(`${engine}: sampled rows of dk and dv are float64's`, { timeout: 0 }, async (t) => {
    const of = K - 1;
    const first = Math.min(...keys);
    const dk = keys.map(() => new Float64Array(D));
    const dv = keys.map(() => new Float64Array(D));
    const inputs = await Promise.all(keys.map(async (j) => [await row(k, K, of, j), await row(v, K, of, j)] as const));
    for (let head = of * group; head < (of + 1) * group; head++) {
      const [qs, os, douts] = [
        await rows(q, N, head, first, T),
        await rows(y.o, N, head, first, T),
        await rows(dout, N, head, first, T),
      ];
      const lse = await logs(y.lse, head, first, T);
      for (const [n, j] of keys.entries()) {
        const [kRow, vRow] = inputs[n] as readonly [Float64Array, Float64Array];
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
      for (const [name, want] of [
        ["dk", dk[n]],
        ["dv", dv[n]],
      ] as const) {
        const least = (sizes.get(y[name]) ?? 0) / 4;
        const error = distance(await row(y[name], K, of, j), want as Float64Array, "bfloat16", least);
        t.ok(error <= tolerance(1, "bfloat16"), `${name} of head ${of}, row ${j}: off by ${error}`);
      }
  });

await t.test("the engines agree over all elements", { timeout: 0 }, async (t) => {
  const [a, b] = engines.map((engine) => done.get(engine));
  if (!a || !b) return void t.fail("one of the engines did not run");
  for (const name of ["o", "lse", "dq", "dk", "dv"] as const) {
    const norm = await squares(device, b[name]);
    // Overwrites the first engine's.
    ops.axpby(b[name], a[name], null, -1, 1);
    const off = Math.sqrt((await squares(device, a[name])) / norm);
    t.ok(off <= (name === "lse" ? 1e-4 : 1e-2), `${name}: ${off} of the norm apart`);
  }
});
data.free();
