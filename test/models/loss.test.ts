// What models take and give back: documents, labels, positions, denominators, tiles; memory after a step; bad input.

import t, { type Test } from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { collate, makeSequence } from "../../lib/data/batch.js";
import { ArgumentError } from "../../lib/errors.js";
import { prepareInput, prepareTargets } from "../../lib/models/batch.js";
import { type CausalLM, initModel } from "../../lib/models/index.js";
import { Mlp } from "../../lib/nn/mlp.js";
import { modelFlops } from "../../lib/report/model_flops.js";
import { Device } from "../../lib/tensor/device.js";
import { layerAtWork } from "../../lib/tensor/layer.js";
import { scope, scopeAsync } from "../../lib/tensor/scope.js";
import { error } from "./helpers.js";

const fields = {
  model_type: "qwen3",
  vocab_size: 31,
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  initializer_range: 0.2,
  sliding_window: 4,
  use_sliding_window: true,
  max_window_layers: 2,
};

const first = [3, 1, 4, 1, 5, 9, 2, 6];
const second = [5, 3, 5, 8, 9];

/** Loss and all gradients, end to end. */
async function step(model: CausalLM, batch: Parameters<CausalLM["loss"]>[0], denominator?: number) {
  return scopeAsync(async () => {
    model.zeroGrad();
    const loss = model.loss(batch, denominator === undefined ? {} : { denominator });
    loss.backward();
    const grads: number[] = [];
    for (const [, { grad }] of model.namedParameters())
      if (grad !== null) grads.push(...((await grad.data()) as Float32Array));
    return { loss: await loss.item(), grads };
  });
}

const close = (t: Test, a: Awaited<ReturnType<typeof step>>, b: Awaited<ReturnType<typeof step>>, what: string) => {
  t.ok(Math.abs(a.loss - b.loss) <= 1e-6 * Math.abs(b.loss), `${what}: loss ${a.loss}, ${b.loss}`);
  const wrong = error(a.grads, b.grads);
  t.ok(wrong <= 1e-4, `${what}: gradients differ by ${wrong}`);
};

t.test("ways to say the same batch", async (t) => {
  using model = initModel(fields);
  const expected = await step(model, { inputIds: [first, second] });
  const flat = [...first, ...second];
  const bounds = [0, first.length, flat.length];
  close(t, await step(model, { inputIds: flat, cuSeqlens: bounds }), expected, "bounds");
  close(t, await step(model, { inputIds: Int32Array.from(flat), labels: flat, cuSeqlens: bounds }), expected, "labels");
  close(t, await step(model, { inputIds: [Int32Array.from(first), second] }), expected, "typed rows");
  const sequence = makeSequence([first, second].map((ids) => ({ inputIds: Int32Array.from(ids), labels: null })));
  close(t, await step(model, collate([sequence])), expected, "the loader's batch");
  // One document after the other, each with its share of the denominator.
  const a = await step(model, { inputIds: first }, 11);
  const b = await step(model, { inputIds: second }, 11);
  const sum = { loss: a.loss + b.loss, grads: a.grads.map((value, i) => value + (b.grads[i] as number)) };
  close(t, sum, expected, "documents apart");
  const joined = await step(model, { inputIds: flat });
  t.ok(Math.abs(joined.loss - expected.loss) > 1e-3, "documents do not see each other");
});

t.test("labels, positions and denominators", async (t) => {
  using model = initModel(fields);
  const labels = first.map((id, i) => (i < 3 ? -100 : id));
  const masked = await step(model, { inputIds: first, labels });
  const logits = await scopeAsync(async () => {
    const made = noGrad(() => model.forward({ inputIds: first }));
    t.strictSame(made.shape, [first.length, 31]);
    return (await made.data()) as Float32Array;
  });
  let total = 0;
  for (let i = 2; i + 1 < first.length; i++) {
    const row = logits.subarray(31 * i, 31 * (i + 1));
    const most = Math.max(...row);
    const sum = row.reduce((so_far, value) => so_far + Math.exp(value - most), 0);
    total += Math.log(sum) + most - (row[first[i + 1] as number] as number);
  }
  t.ok(Math.abs(masked.loss - total / 5) < 1e-5, `loss ${masked.loss}, from the logits ${total / 5}`);
  const half = await step(model, { inputIds: first, labels }, 10);
  t.ok(Math.abs(half.loss - masked.loss / 2) < 1e-6);
  t.ok(
    error(
      half.grads,
      masked.grads.map((value) => value / 2),
    ) < 1e-5,
  );

  const none = await step(model, { inputIds: first, labels: first.map(() => -100) });
  t.equal(none.loss, 0);
  t.ok(
    none.grads.every((value) => value === 0),
    "no valid label: nothing, and no NaN",
  );

  const shifted = await step(model, { inputIds: first, positions: first.map((_, i) => i + 1000) });
  const plain = await step(model, { inputIds: first });
  close(t, shifted, plain, "only distances count");
  const spread = await step(model, { inputIds: first, positions: first.map((_, i) => 3 * i) });
  t.ok(Math.abs(spread.loss - plain.loss) > 1e-5, "positions are used");
});

t.test("tiles change nothing, frozen parameters have no gradient", async (t) => {
  using model = initModel(fields);
  const batch = { inputIds: [first, second, [7], first] };
  const expected = await step(model, batch);
  for (const [tileMlp, tileLoss] of [
    [1, 1],
    [5, 3],
    [1000, 1000],
  ] as const) {
    model.configureMemory({ tileMlp, tileLoss });
    close(t, await step(model, batch), expected, `tiles of ${tileMlp} and ${tileLoss}`);
  }
  model.configureMemory({ tileMlp: 5 });
  const mlp = model.model.layers[1]?.mlp;
  if (!(mlp instanceof Mlp)) throw new Error("no MLP in layer 1");
  const frozen = mlp.upProj.weight;
  frozen.requiresGrad = false;
  const rest = await step(model, batch);
  t.equal(frozen.grad, null);
  t.equal(rest.grads.length, expected.grads.length - frozen.size);
  t.ok(Math.abs(rest.loss - expected.loss) < 1e-6);
});

t.test("the embedding row of the padding token is not trained, its lm_head row is", async (t) => {
  const gradsOf = async (more: object) => {
    using model = initModel({ ...fields, ...more });
    // Initialisation zeroes the row; a loaded checkpoint has any values there.
    model.model.embedTokens.weight.fill(0.5);
    return scopeAsync(async () => {
      model.loss({ inputIds: first }).backward();
      return (await model.model.embedTokens.weight.grad?.data()) as Float32Array;
    });
  };
  const row = (grad: Float32Array, id: number) => grad.slice(16 * id, 16 * (id + 1));
  const plain = await gradsOf({});
  const padded = await gradsOf({ pad_token_id: 1 });
  t.ok(row(plain, 1).some((value) => value !== 0));
  t.ok(row(padded, 1).every((value) => value === 0));
  for (const id of [3, 4, 5, 9]) t.equal(error(row(padded, id), row(plain, id)), 0, "no other row changes");
  const tied = await gradsOf({ pad_token_id: 1, tie_word_embeddings: true });
  t.ok(row(tied, 1).some((value) => value !== 0));
  const outside = await gradsOf({ pad_token_id: 30 });
  t.equal(error(outside, plain), 0);
});

t.test("after a step, memory is what it was", async (t) => {
  const device = new Device("cpu");
  for (const family of ["llama", "mistral", "qwen2", "qwen3"]) {
    using model = initModel({ ...fields, model_type: family }, { device });
    const layers: string[] = [];
    model.onLayer = (phase, layer) => layers.push(`${phase} ${layer}`);
    const live = device.memory().live;
    for (const tileMlp of [0, 4]) {
      model.configureMemory({ tileMlp, tileLoss: tileMlp });
      for (let round = 0; round < 2; round++) {
        const loss = model.loss({ inputIds: [first, second] });
        loss.backward();
        loss.dispose();
        model.zeroGrad();
        t.equal(device.memory().live, live, `${family}: after a step`);
        scope(() => {
          model.loss({ inputIds: first });
        });
        noGrad(() => model.loss({ inputIds: first })).dispose();
        noGrad(() => model.forward({ inputIds: first })).dispose();
        await device.synchronize();
      }
    }
    t.strictSame(layers.slice(0, 3), ["forward 0", "forward 1", "forward 2"]);
  }
});

t.test("which layer is at work is known where progress is marked", async (t) => {
  using model = initModel(fields, { device: new Device("cpu") });
  const told: string[] = [];
  model.onLayer = () => told.push(`forward ${layerAtWork()}`);
  const loss = model.loss({ inputIds: first });
  loss.backward(null, { onNode: () => told.push(`backward ${layerAtWork()}`) });
  loss.dispose();
  model.zeroGrad();
  const once = told.filter((text, i) => text !== told[i - 1]);
  const layers = Array.from({ length: fields.num_hidden_layers }, (_, layer) => layer);
  t.same(
    once.slice(0, layers.length),
    layers.map((layer) => `forward ${layer}`),
  );
  t.same(
    [...new Set(once.slice(layers.length))].filter((text) => text !== "backward -1"),
    layers.map((layer) => `backward ${layer}`).reverse(),
  );
  t.equal(layerAtWork(), -1);
});

t.test("evaluation holds one layer's tensors at a time", async (t) => {
  const device = new Device("cpu");
  const peak = (num_hidden_layers: number): number => {
    using model = initModel({ ...fields, num_hidden_layers, hidden_size: 64, intermediate_size: 256 }, { device });
    const inputIds = new Int32Array(4096).map((_, i) => i % 31);
    const before = device.memory().live;
    device.resetPeaks();
    noGrad(() => model.loss({ inputIds })).dispose();
    t.equal(device.memory().live, before);
    return device.memory().peakLive - before;
  };
  const two = peak(2);
  t.equal(peak(6), two);
  await device.synchronize();
});

t.test("operations as the formula counts them", async (t) => {
  const device = new Device("cpu");
  const { sliding_window, use_sliding_window, ...plain } = fields;
  using model = initModel({ ...plain, head_dim: 8 }, { device });
  device.resetOpCounts();
  const loss = model.loss({ inputIds: [first, second] });
  loss.backward();
  await device.synchronize();
  const counted = device.totalFlops();
  const formula = modelFlops(model.shape, [first.length, second.length]);
  // Attention's backward makes the scores once more than the formula counts.
  t.ok(counted >= formula && counted < 1.2 * formula, `${counted} operations, by formula ${formula}`);
  loss.dispose();
});

t.test("bad input", async (t) => {
  using model = initModel(fields);
  const bad: [run: () => unknown, message: RegExp][] = [
    [() => model.forward({ inputIds: [1, 31] }), /inputIds\[1\] is 31, which is no token of this model \(0 to 30\)/],
    [() => model.forward({ inputIds: [[1], [2, -1]] }), /inputIds\[1\]\[1\] is -1/],
    [() => model.loss({ inputIds: [1, Number.NaN] }), /inputIds\[1\] is NaN, which is not a whole number/],
    [() => model.loss({ inputIds: [1, 2.5] }), /inputIds\[1\] is 2\.5/],
    [() => model.loss({ inputIds: [] }), /inputIds is empty/],
    [() => model.loss({ inputIds: "12" as never }), /inputIds is string, expected an array/],
    [() => model.loss({ inputIds: [[1], 2] as never }), /inputIds\[1\] is number, expected an array/],
    [() => model.loss({ inputIds: [1, 2], labels: [1] }), /labels and inputIds differ in length: 1 against 2/],
    [() => model.loss({ inputIds: [[1, 2], [3]], labels: [[1], [2, 3]] }), /1, 2 against 2, 1/],
    [() => model.loss({ inputIds: [1, 2], labels: [1, -1] }), /labels\[1\] is -1, .* nor -100/],
    [() => model.loss({ inputIds: [1, 2], labels: [1, 31] }), /labels\[1\] is 31/],
    [() => model.loss({ inputIds: [1, 2], targets: Int32Array.of(1) }), /targets has 1 entries for 2 tokens/],
    [() => model.loss({ inputIds: [1, 2], targets: Int32Array.of(1, 2), labels: [1, 2] }), /both targets and labels/],
    [() => model.loss({ inputIds: [1, 2], positions: [1] }), /positions has 1 entries for 2 tokens/],
    [() => model.loss({ inputIds: [1, 2], positions: [0, 0.5] }), /positions\[1\] is 0\.5/],
    [() => model.loss({ inputIds: [1, 2], cuSeqlens: [0, 1] }), /cuSeqlens is \[0, 1\]; expected bounds from 0 to 2/],
    [
      () => model.loss({ inputIds: [1, 2, 3], cuSeqlens: [0, 2, 1, 3] }),
      /cuSeqlens\[2\] is 1, below the one before, 2/,
    ],
    [() => model.loss({ inputIds: [1, 2] }, { denominator: 0 }), /denominator is 0/],
    [() => model.loss({ inputIds: [1, 2] }, { denominator: Number.NaN }), /denominator is NaN/],
    [() => model.configureMemory({ tileMlp: -1 }), /tileMlp is -1/],
    [() => model.configureMemory({ tileLoss: 1.5 }), /tileLoss is 1\.5/],
  ];
  for (const [run, message] of bad) {
    try {
      run();
      t.fail(`nothing was said: ${message}`);
    } catch (error) {
      t.type(error, ArgumentError);
      t.match((error as Error).message, message);
    }
  }
  const loss = model.loss({ inputIds: [1, 2] });
  t.ok(Number.isFinite(await loss.item()), "the model is as it was");
  loss.backward();
});

t.test("preparing", (t) => {
  const { positions, cuSeqlens } = prepareInput({ inputIds: [1, 2, 3], cuSeqlens: [0, 0, 2, 3] }, 9);
  t.strictSame([...positions], [0n, 1n, 0n]);
  t.strictSame([...cuSeqlens], [0n, 0n, 2n, 3n], "an empty document is one");
  t.strictSame(prepareTargets({ inputIds: [1, 2, 3], cuSeqlens: [0, 0, 2, 3] }, 9), {
    targets: Int32Array.of(2, -100, -100),
    validTokens: 1,
  });
  t.end();
});
