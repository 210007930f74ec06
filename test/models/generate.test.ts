// Generation beside transformers' (greedy, with and without a repetition penalty), and beside forwards of whole sequences.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { type CausalLM, initModel, loadModel } from "../../lib/models/index.js";
import { Sampler } from "../../lib/models/sampler.js";

const golden = join(import.meta.dirname, "../golden");
interface Case {
  prompt: number[];
  penalty: number;
  ids: number[];
  last: number[];
}
const { models } = JSON.parse(readFileSync(join(golden, "generate.json"), "utf8")) as {
  models: Record<string, Case[]>;
};

/** Ids of each prompt. */
async function idsOf(
  model: CausalLM,
  prompts: number[][],
  options: Parameters<CausalLM["generate"]>[1],
): Promise<number[][]> {
  const ids: number[][] = prompts.map(() => []);
  for await (const { sequence, id } of model.generate(prompts, options)) ids[sequence]?.push(id);
  return ids;
}

/** The logits behind a sequence, by a forward of all of it. */
async function logitsOf(model: CausalLM, ids: number[]): Promise<Float32Array> {
  // A graph would live until it is collected, and be counted in a later test.
  using logits = noGrad(() => model.forward({ inputIds: ids }));
  return ((await logits.data()) as Float32Array).slice(-(logits.shape[1] as number));
}

for (const [name, cases] of Object.entries(models))
  t.test(`${name}: greedy ids are transformers'`, async (t) => {
    using model = await loadModel(join(golden, "models", name, "model"));
    const { live } = model.device.memory();
    for (const { prompt, penalty, ids, last } of cases) {
      const made = await idsOf(model, [prompt], { maxNewTokens: ids.length, repetitionPenalty: penalty });
      t.same(made[0], ids);
      // Keys that were turned for a shorter sequence are no use then: generate begins anew, extend does not.
      if (model.positionsDependOnLength) continue;
      using cache = model.keyValueCache({ capacity: prompt.length + ids.length });
      model.extend([prompt], cache).dispose();
      for (const id of ids.slice(0, -2)) model.extend([[id]], cache).dispose();
      using logits = model.extend([ids.slice(-2, -1)], cache);
      const values = (await logits.data()) as Float32Array;
      for (const [i, value] of last.entries())
        t.ok(Math.abs((values[i] as number) - value) <= 2e-4 * Math.max(1, Math.abs(value)), `logit ${i}`);
    }
    // Together, and in pieces of three tokens.
    const [first, second] = cases as [Case, Case];
    const count = Math.min(first.ids.length, second.ids.length);
    t.same(
      await idsOf(model, [first.prompt, second.prompt], { maxNewTokens: count, promptTokens: 3 }),
      [first, second].map(({ ids }) => ids.slice(0, count)),
    );
    t.equal(model.device.memory().live, live, "all memory is given back");
  });

const fields = {
  model_type: "llama",
  vocab_size: 32,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  max_position_embeddings: 16,
  initializer_range: 0.3,
};

for (const rope of [
  { rope_type: "dynamic", factor: 2 },
  {
    rope_type: "longrope",
    short_factor: [1, 1.1],
    long_factor: [1, 4],
    factor: 4,
    original_max_position_embeddings: 16,
  },
])
  t.test(`${rope.rope_type}: logits of every step are those of a forward of that length`, async (t) => {
    using model = initModel({ ...fields, rope_scaling: rope }, { seed: 4 });
    const ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3];
    for await (const { id, logProbability } of model.generate(ids, { maxNewTokens: 14, logProbabilities: true })) {
      const logits = await logitsOf(model, ids);
      const most = Math.max(...logits);
      t.equal(id, logits.indexOf(most));
      const sum = logits.reduce((total, value) => total + Math.exp(value - most), 0);
      t.ok(Math.abs((logProbability as number) + Math.log(sum)) < 1e-5);
      ids.push(id);
    }
    t.equal(ids.length, 24);
  });

t.test("head chunks, tiles and parameters on the host change nothing", async (t) => {
  using model = initModel(fields, { seed: 1 });
  const plain = await idsOf(model, [[1, 2, 3]], { maxNewTokens: 12 });
  model.configureMemory({ headChunks: 4, tileMlp: 2, checkpointEvery: 2 });
  t.same(await idsOf(model, [[1, 2, 3]], { maxNewTokens: 12, promptTokens: 2 }), plain);
  using hosted = initModel(fields, { seed: 1, memory: { states: { params: "host" }, checkpointEvery: 1 } });
  t.same(await idsOf(hosted, [[1, 2, 3]], { maxNewTokens: 12 }), plain);
});

t.test("ends", async (t) => {
  using model = initModel(fields, { seed: 1 });
  const { live } = model.device.memory();
  const [free] = (await idsOf(model, [[1, 2, 3]], { maxNewTokens: 8 })) as [number[]];
  const stop = free[3] as number;
  const seen: (string | null)[] = [];
  for await (const { finish } of model.generate([1, 2, 3], { maxNewTokens: 8, stopIds: [stop] })) seen.push(finish);
  t.same(seen, [...new Array(free.indexOf(stop)).fill(null), "stop"]);
  for await (const _ of model.generate([1, 2, 3])) break;
  t.equal(model.device.memory().live, live, "breaking off gives the memory back");
  await t.rejects(idsOf(model, [[1]], { signal: AbortSignal.abort(new Error("enough")) }), { message: "enough" });
  const counts = [0, 0];
  for await (const { sequence } of model.generate([[1], [2, 3]], {
    maxNewTokens: 5,
    onStart: (end) => end(0),
  }))
    counts[sequence] = (counts[sequence] as number) + 1;
  t.same(counts, [1, 5], "a sequence that is stopped gets no more");
});

t.test("bad input", async (t) => {
  using model = initModel(fields, { seed: 1 });
  const fails = (prompts: number[] | number[][], options: object, message: RegExp) =>
    t.rejects(
      (async () => {
        for await (const _ of model.generate(prompts, options)) break;
      })(),
      { message, code: "INVALID_ARGUMENT" },
    );
  await fails([], {}, /there are no prompts/);
  await fails([[1], []], {}, /prompt 1 is empty/);
  await fails([1, 1.5], {}, /prompt 0, token 1 is 1.5/);
  await fails([[1], [Number.NaN]], {}, /prompt 1, token 0 is NaN/);
  await fails([2 ** 32], {}, /token 0 is 4294967296/);
  await fails([1, 99], {}, /inputIds\[0\]\[1\] is 99/);
  await fails([1], { maxNewTokens: 0 }, /maxNewTokens is 0/);
  await fails([1], { temperature: -1 }, /temperature is -1/);
  await fails([1], { topP: 0 }, /topP is 0/);
  await fails([1], { topK: 1.5 }, /topK is 1.5/);
  await fails([1], { repetitionPenalty: 0 }, /repetitionPenalty is 0/);
  using cache = model.keyValueCache({ capacity: 2 });
  t.throws(() => model.extend([[1, 2, 3]], cache), { message: /3 more exceed the 2/ });
  t.throws(() => model.extend([[1]], cache, [1]), { message: /the cache has sequences 0 to 0/ });
  t.equal(cache.length(0), 0);
  t.throws(() => cache.truncate(0, -1), { message: /truncate: expected/ });
  t.throws(() => model.keyValueCache({ sequences: 1e9, capacity: 1 }), { message: /at most 1000000/ });
  t.throws(() => model.keyValueCache(undefined as never), { message: /expected options of \{capacity/ });
  t.throws(() => model.extend([[1]], null as never), { message: /expected the cache of keyValueCache/ });
  t.throws(() => model.extend([[1]], cache, [0, 1]), { message: /tokens of 1 sequences, but 2 numbers/ });
  using other = initModel({ ...fields, num_hidden_layers: 5 }, { seed: 1 });
  t.throws(() => other.extend([[1]], cache), { message: /the cache is for . layers .* the model has 5 layers/ });
  cache.dispose();
  t.throws(() => model.extend([[1]], cache), { message: /was disposed of/ });
  for (const given of [null, 5, "text", [null], [1, [2]]]) await fails(given as never, {}, /generate: /);
  await fails([1], { stopIds: 5 as never }, /stopIds is 5/);
  await fails([1], { signal: 5 as never }, /signal is no AbortSignal/);
  await fails([1], null as never, /expected options/);
});

t.test("learned positions end where they end", async (t) => {
  using model = await loadModel(join(golden, "models/gpt2/model"));
  const most = model.config.maxPositionEmbeddings;
  const prompt = new Array(most - 3).fill(1);
  const [made] = (await idsOf(model, [prompt], { maxNewTokens: 50 })) as [number[]];
  t.equal(made.length, 4, "the last token needs no position");
  await t.rejects(idsOf(model, [new Array(most + 1).fill(1)], {}), { message: /learned positions for/ });
});

t.test("sampling", async (t) => {
  const logits = Float32Array.from([2, 1, 0, -1, 3]);
  const share = Array.from(logits, (value) => Math.exp(value));
  const counted = (options: object, allowed: number[]) => {
    const sampler = new Sampler({ temperature: 1, seed: 7, ...options });
    const counts = new Array(5).fill(0);
    const draws = 20_000;
    for (let i = 0; i < draws; i++) counts[sampler.choose(logits.slice()).id]++;
    const total = allowed.reduce((sum, id) => sum + (share[id] as number), 0);
    for (let id = 0; id < 5; id++) {
      const expected = allowed.includes(id) ? (share[id] as number) / total : 0;
      // Five standard deviations.
      const bound = 5 * Math.sqrt((expected * (1 - expected)) / draws);
      t.ok(Math.abs(counts[id] / draws - expected) <= bound, `${JSON.stringify(options)}: token ${id}`);
    }
  };
  counted({}, [0, 1, 2, 3, 4]);
  counted({ topK: 2 }, [4, 0]);
  // Probabilities: 0.636, 0.234, 0.086, 0.032, 0.012.
  counted({ topP: 0.6 }, [4]);
  counted({ topP: 0.87 }, [4, 0]);
  counted({ topP: 0.88 }, [4, 0, 1]);
  counted({ minP: 0.1 }, [4, 0, 1]);
  counted({ minP: 0.99 }, [4]);
  const drawn = (seed: number, sequence: number) => {
    const sampler = new Sampler({ temperature: 2, seed }, sequence);
    return Array.from({ length: 30 }, () => sampler.choose(logits.slice()).id);
  };
  t.same(drawn(1, 0), drawn(1, 0), "a seed gives the same choices");
  t.notSame(drawn(1, 0), drawn(2, 0));
  t.notSame(drawn(1, 0), drawn(1, 1));
  const cold = new Sampler({ temperature: 1e-3 });
  t.equal(cold.choose(logits.slice()).id, 4);
  for (const temperature of [1e-40, 1e-310])
    t.equal(new Sampler({ temperature }).choose(logits.slice()).id, 4, "no temperature is too low");
  t.equal(new Sampler({ temperature: 1e-40, topP: 0.5, minP: 0.1 }).choose(logits.slice()).id, 4);
  const penalised = new Sampler({ repetitionPenalty: 2 });
  penalised.see([4, 3]);
  t.equal(penalised.choose(logits.slice()).id, 0, "3 / 2 is below 2");
  t.throws(() => cold.choose(Float32Array.of(Number.NaN, 1)), { message: /not finite/ });
});
