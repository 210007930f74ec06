// Rope kinds that depend on the length: each batch by its own largest position, whatever runs beside or before it.

import t from "tap";
import { initModel } from "../../lib/models/index.js";
import { gradNorm } from "../../lib/nn/clip_grad.js";
import { scopeAsync } from "../../lib/tensor/scope.js";

const fields = {
  model_type: "llama",
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 3,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  max_position_embeddings: 16,
  initializer_range: 0.3,
};
const short = [1, 1.1, 1.3, 1.5];
const long = [1, 2, 4, 9];
const longrope = (shortFactor: number[], longFactor: number[]) => ({
  rope_type: "longrope",
  short_factor: shortFactor,
  long_factor: longFactor,
  factor: 4,
  original_max_position_embeddings: 16,
});
const modelOf = (rope: object) => initModel({ ...fields, rope_scaling: rope }, { seed: 4 });
const ids = (count: number, seed: number) => Int32Array.from({ length: count }, (_, i) => (i * i * 7 + i * seed) % 32);

/** Losses of batches whose backwards all run behind the last forward, and the norm of their gradients. */
async function step(model: ReturnType<typeof modelOf>, batches: Int32Array[][]): Promise<number[]> {
  return scopeAsync(async () => {
    model.zeroGrad();
    const losses = batches.map((rows) => model.loss({ inputIds: rows }));
    for (const loss of losses) loss.backward();
    const norm = gradNorm(model.parameters(), 0).norm;
    return Promise.all([...losses, norm].map((value) => value.item()));
  });
}

t.test("longrope takes the long factors where the longest document is longer than the original length", async (t) => {
  using model = modelOf(longrope(short, long));
  using alwaysShort = modelOf(longrope(short, short));
  using alwaysLong = modelOf(longrope(long, long));
  for (const rows of [[ids(16, 3)], [ids(16, 3), ids(9, 5)]]) {
    t.same(await step(model, [rows]), await step(alwaysShort, [rows]), "16 tokens each at most");
    t.not((await step(model, [rows]))[0], (await step(alwaysLong, [rows]))[0]);
  }
  for (const rows of [[ids(17, 3)], [ids(5, 5), ids(17, 3), ids(9, 5)]])
    t.same(await step(model, [rows]), await step(alwaysLong, [rows]), "one of 17 tokens");
});

t.test("dynamic: a short batch behind a long one is that of a model that saw no other", async (t) => {
  using model = modelOf({ rope_type: "dynamic", factor: 4 });
  using plain = modelOf({ rope_type: "default" });
  const [alone] = await step(model, [[ids(20, 3)]]);
  t.not(alone, (await step(plain, [[ids(20, 3)]]))[0], "scaled beyond 16");
  await step(model, [[ids(40, 3)]]);
  t.equal((await step(model, [[ids(20, 3)]]))[0], alone);
  t.same(await step(model, [[ids(16, 3)]]), await step(plain, [[ids(16, 3)]]), "not scaled up to 16");
});

for (const rope of [{ rope_type: "dynamic", factor: 4 }, longrope(short, long)])
  t.test(`${rope.rope_type}: batches of different lengths in one step, with every kind of checkpoint`, async (t) => {
    using model = modelOf(rope);
    const batches = [[ids(24, 3)], [ids(9, 5)], [ids(40, 1), ids(3, 1)]];
    const expected = await step(model, batches);
    for (const memory of [
      { checkpointEvery: 1 },
      { checkpointEvery: 1, keepAttention: true, offload: "host" as const },
      { checkpointEvery: 2 },
      { checkpointEvery: 1, headChunks: 2, tileMlp: 7, tileLoss: 5 },
    ]) {
      model.configureMemory({ keepAttention: false, offload: "none", headChunks: 1, ...memory });
      const got = await step(model, batches);
      for (const [i, value] of got.entries())
        t.ok(Math.abs(value / (expected[i] as number) - 1) < 1e-5, `${JSON.stringify(memory)}: ${got}, ${expected}`);
    }
  });
