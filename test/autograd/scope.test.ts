// Scopes: what they free, what they keep, in order and out of order.
import t from "tap";
import { device, ops, Parameter, randn, scope, scopeAsync, type Tensor, tensor } from "../../lib/index.js";

const cpu = device("cpu");
/** Held to the end: the garbage collector must not free anything while bytes are compared. */
const held: Parameter[] = [];
const parameter = (size: number): Parameter => {
  const made = new Parameter(randn([size, size], { seed: 5 }));
  held.push(made);
  return made;
};
const big = (): Tensor => randn([100, 100]);

t.test("a scope frees what it does not return", async (t) => {
  const before = cpu.memory().live;
  let lost: Tensor | undefined;
  const kept = scope(() => {
    lost = big();
    const a = big();
    return { list: [a], map: new Map([["b", big()]]), set: new Set([big()]), number: 3, none: null };
  });
  t.ok(lost?.disposed);
  t.notOk(kept.list[0]?.disposed);
  t.notOk(kept.map.get("b")?.disposed);
  t.equal(cpu.memory().live - before, 3 * 40192);
  for (const x of [kept.list[0], kept.map.get("b"), ...kept.set]) x?.dispose();
  t.equal(cpu.memory().live, before);
});

t.test("scopes nest: what the inner one returns, the outer one frees", async (t) => {
  const before = cpu.memory().live;
  const outer = scope(() => {
    const inner = scope(() => [big(), big()]);
    return inner[1] as Tensor;
  });
  t.equal(cpu.memory().live - before, 40192);
  outer.dispose();
  t.equal(cpu.memory().live, before);
});

t.test("an error frees everything and comes through", async (t) => {
  const before = cpu.memory().live;
  t.throws(
    () =>
      scope(() => {
        big();
        throw new Error("mine");
      }),
    /mine/,
  );
  t.equal(cpu.memory().live, before);
});

t.test("a graph that leaves a scope keeps what its backward needs; one that does not is freed", async (t) => {
  const w = parameter(100);
  const before = cpu.memory().live;
  const loss = scope(() => ops.silu(ops.linear(big(), w)).sum());
  t.ok(cpu.memory().live > before, "saved tensors live");
  loss.backward();
  t.ok(w.grad, "gradient");
  w.grad?.dispose();
  w.grad = null;
  t.equal(cpu.memory().live, before);
  scope(() => {
    ops.silu(ops.linear(big(), w)).sum();
  });
  t.equal(cpu.memory().live, before, "no backward came, nothing stays");
});

t.test("gradients made inside a scope outlive it", async (t) => {
  const w = parameter(10);
  scope(() => {
    ops
      .linear(randn([3, 10]), w)
      .sum()
      .backward();
  });
  t.notOk(w.grad?.disposed);
  t.equal((await w.grad?.data())?.length, 100);
});

t.test("a promise is refused; scopeAsync follows awaits", async (t) => {
  t.throws(() => scope(async () => big()), { code: "INVALID_ARGUMENT", message: /scopeAsync/ });
  const before = cpu.memory().live;
  const kept = await scopeAsync(async () => {
    big();
    await new Promise((resolve) => setTimeout(resolve, 1));
    big();
    return big();
  });
  t.equal(cpu.memory().live - before, 40192);
  kept.dispose();
  t.equal(cpu.memory().live, before);
});

t.test("using disposes; a second dispose does nothing; use after it is an error", async (t) => {
  const before = cpu.memory().live;
  {
    using x = big();
    t.notOk(x.disposed);
  }
  t.equal(cpu.memory().live, before);
  const x = big();
  x.dispose();
  x.dispose();
  t.throws(() => x.add(1), { code: "INVALID_ARGUMENT", message: /disposed/ });
  await t.rejects(x.data(), { code: "INVALID_ARGUMENT" });
});

t.test("keep() takes a tensor out of its scope", async (t) => {
  const kept: Tensor[] = [];
  scope(() => {
    kept.push(tensor([1, 2, 3]).keep());
  });
  t.same(await kept[0]?.toArray(), [1, 2, 3]);
});
