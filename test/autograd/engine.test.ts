// The tape: accumulation, freezing, hooks, in-place writes, and what backward() frees.
import t from "tap";
import {
  type Context,
  device,
  Function,
  type Grad,
  noGrad,
  ops,
  Parameter,
  randn,
  scope,
  type Tensor,
  tensor,
  tiled,
} from "../../lib/index.js";

const cpu = device("cpu");
const parameter = (values: number[][]): Parameter => new Parameter(tensor(values));

t.test("gradients add up over backward passes, in float32", async (t) => {
  const w = new Parameter(
    tensor([
      [1, 2],
      [3, 4],
    ]).to("bfloat16"),
  );
  const x = tensor([[1, 1]], { dtype: "bfloat16" });
  for (let i = 0; i < 3; i++) ops.linear(x, w).sum().backward();
  t.equal(w.grad?.dtype, "float32");
  t.same(await w.grad?.toArray(), [
    [3, 3],
    [3, 3],
  ]);
});

t.test("a frozen parameter gets no gradient, and what only it needs is not computed", async (t) => {
  const [a, b] = [parameter([[1, 2]]), parameter([[3], [4]])];
  a.requiresGrad = false;
  cpu.resetOpCounts();
  ops
    .linear(ops.linear(tensor([[1, 1]]), a), b)
    .sum()
    .backward();
  t.equal(a.grad, null);
  t.same(await b.grad?.toArray(), [[3], [3]]);
  t.equal(cpu.opCounts().matmul?.calls, 3, "two products forward, one backward");
});

t.test("hooks run once a backward, after every share has come", async (t) => {
  const w = parameter([
    [1, 0],
    [0, 1],
  ]);
  const seen: number[][] = [];
  w.registerHook((p) => seen.push([...(p.grad?.shape ?? [])]));
  const x = tensor([
    [1, 2],
    [3, 4],
    [5, 6],
  ]);
  ops.linear(ops.linear(x, w), w).sum().backward();
  t.same(seen, [[2, 2]], "used twice");
  tiled((part) => ops.linear(part, w), x, { rows: 1, parameters: [w] })
    .sum()
    .backward();
  t.equal(seen.length, 2, "used in three tiles");
  const remove = w.registerHook(() => seen.push([]));
  remove();
  ops.linear(x, w).sum().backward();
  t.equal(seen.length, 3);
});

t.test("writing in place to a saved tensor is an error at backward", async (t) => {
  const w = parameter([[1, 2]]);
  const x = tensor([[1, 1]]);
  const y = ops.linear(x, w).sum();
  x.fill(2);
  t.throws(() => y.backward(), { code: "INVALID_ARGUMENT", message: /written in place/ });
});

t.test("a graph is walked once, or kept on request", async (t) => {
  const x = randn([2, 2], { requiresGrad: true });
  const kept = x.mul(x).sum();
  kept.backward(null, { retainGraph: true });
  const once = (await x.grad?.data()) as Float32Array;
  kept.backward();
  const twice = await x.grad?.data();
  t.same(
    twice,
    once.map((g: number) => 2 * g),
  );
  t.throws(() => kept.backward(), { code: "INVALID_ARGUMENT" });
});

t.test("backward() refuses what it cannot start from", async (t) => {
  const x = randn([2, 2], { requiresGrad: true });
  t.throws(() => x.mul(2).backward(), /needs a gradient/);
  t.throws(() => x.mul(2).backward(tensor([1])), /gradient has shape/);
  t.throws(() => randn([1]).backward(), /no graph/);
  t.throws(() => noGrad(() => x.mul(2).sum()).backward(), /no graph/);
});

t.test("a plain loop stays flat without scopes, and live bytes are the same after each step", async (t) => {
  const w = new Parameter(randn([64, 64], { seed: 2 }));
  const x = randn([256, 64], { seed: 3 });
  const live: number[] = [];
  const middle: Tensor[] = [];
  for (let i = 0; i < 4; i++) {
    let h: Tensor = x;
    for (let layer = 0; layer < 3; layer++) {
      h = ops.silu(ops.linear(h, w));
      middle.push(h);
    }
    const loss = h.sum();
    loss.backward();
    t.ok(
      middle.every((tensor) => tensor.disposed),
      "backward freed what it walked",
    );
    t.notOk(loss.disposed, "but not the root");
    t.ok(Number.isFinite(await loss.item()));
    live.push(cpu.memory().live);
  }
  t.equal(new Set(live).size, 1, `live bytes ${live}`);
});

t.test("an error in the middle of a backward leaves no gradient behind", async (t) => {
  const x = randn([64, 64], { seed: 4, requiresGrad: true });
  const bad = new (class extends Function<[Tensor], Tensor> {
    readonly name = "bad";
    forward(_: Context, given: Tensor): Tensor {
      return given.clone();
    }
    backward(): Grad[] {
      throw new Error("no");
    }
  })();
  const before = cpu.memory().live;
  t.throws(() => scope(() => bad.apply(x.mul(x)).mul(2).sum().backward()), /no/);
  t.equal(cpu.memory().live, before);
});

t.test("a gradient that is handed over may be overwritten, one that others hold is not", async (t) => {
  const x = randn([64, 64], { seed: 4, requiresGrad: true });
  const weight = new Parameter(randn([64], { seed: 5 }));
  const upstream = randn([64, 64], { seed: 6 });
  const given = (await upstream.data()).slice();
  ops.rmsNorm(x, weight).backward(upstream);
  t.same(await upstream.data(), given, "a seed stays as it is");
  const alone = (await x.grad?.data()) as Float32Array;
  x.grad = null;
  // The sum of both passes one gradient on to two branches.
  const y = ops.rmsNorm(x, weight);
  const z = ops.rmsNorm(x, weight);
  y.add(z).backward(upstream);
  const twice = (await (x.grad as unknown as Tensor).data()) as Float32Array;
  t.ok(
    alone.every((value, i) => Math.abs((twice[i] as number) - 2 * value) <= 1e-5 * (1 + Math.abs(value))),
    "and so does one that two branches get",
  );
});
