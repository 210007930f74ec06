// Optimizer states, gradients and parameters in host memory: the same bits as with all on the device, and the bytes
// that left it.
import { createHash } from "node:crypto";
import t from "tap";
import { noGrad } from "../../lib/autograd/function.js";
import { binding } from "../../lib/binding.js";
import { type CausalLM, initModel, type MemoryOptions } from "../../lib/models/index.js";
import * as nn from "../../lib/nn/index.js";
import * as optim from "../../lib/optim/index.js";
import { Device } from "../../lib/tensor/device.js";
import { scope } from "../../lib/tensor/scope.js";
import { Tensor } from "../../lib/tensor/tensor.js";
import { queues } from "../../lib/tensor/tiers.js";

type Place = "none" | "host";
interface States {
  optimizer: Place;
  gradients: Place;
  params: Place;
}
const places = ["none", "host"] as const;
const combinations: States[] = places.flatMap((optimizer) =>
  places.flatMap((gradients) => places.map((params) => ({ optimizer, gradients, params }))),
);
const onDevice = combinations[0] as States;
const allOut = combinations[7] as States;

const cpu = new Device("cpu", { threads: 2 });
const fields = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 16,
  num_hidden_layers: 4,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 24,
  vocab_size: 53,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 4096,
  hidden_act: "silu",
};
const T = 40;

interface Case {
  dtype?: "float32" | "bfloat16";
  tied?: boolean;
  /** Micro-batches a step. */
  passes?: number;
  memory?: MemoryOptions;
  frozen?: (name: string) => boolean;
  pieceElements?: number;
  steps?: number;
  device?: Device;
}

interface Outcome {
  losses: number[];
  norms: number[];
  params: Map<string, Float32Array>;
  deviceLive: number[];
  hostLive: number[];
  devicePeak: number;
  hostPeak: number;
}

const batchOf = (step: number, pass: number) => ({
  inputIds: Int32Array.from({ length: T - 9 * pass }, (_, i) => (i * 7919 + step * 131 + pass * 17 + (i % 13)) % 53),
});

/** Some steps of AdamW; `each` looks at the device after a step's backward and after its update. */
async function train(states: States, of: Case = {}, each?: (model: CausalLM, when: "backward" | "update") => void) {
  const { dtype = "float32", tied = false, passes = 1, steps = 3, frozen = () => false, device = cpu } = of;
  t.equal(device.memory().live + device.memory("host").live, 0, "nothing is left of the run before");
  device.trim();
  const memory = { checkpointEvery: 1, tileMlp: 16, tileLoss: 31, ...of.memory, states };
  const model = initModel({ ...fields, tie_word_embeddings: tied }, { device, dtype, seed: 3, memory });
  for (const [name, parameter] of model.namedParameters()) parameter.requiresGrad = !frozen(name);
  const parameters = model.parameters();
  const optimizer = new optim.AdamW(parameters, {
    learningRate: 1e-2,
    weightDecay: 0.1,
    decayOnlyMatrices: true,
    offload: states.optimizer,
    ...(of.pieceElements ? { pieceElements: of.pieceElements } : {}),
  });
  optimizer.namedState(new Map(model.parameters().map((parameter, i) => [parameter, String(i)])));
  device.resetPeaks();
  const outcome: Outcome = {
    losses: [],
    norms: [],
    params: new Map(),
    deviceLive: [device.memory().live],
    hostLive: [device.memory("host").live],
    devicePeak: 0,
    hostPeak: 0,
  };
  const reads: Promise<unknown>[] = [];
  for (let step = 0; step < steps; step++) {
    scope(() => {
      for (let pass = 0; pass < passes; pass++) {
        const loss = model.loss(batchOf(step, pass), { denominator: 150 });
        loss.backward();
        reads.push(loss.item().then((value) => outcome.losses.splice(step * passes + pass, 1, value)));
      }
      each?.(model, "backward");
      const { norm, factor, finite } = nn.gradNorm(parameters, 0.5);
      reads.push(norm.item().then((value) => outcome.norms.splice(step, 1, value)));
      optimizer.step({ factor, finite });
      optimizer.zeroGrad();
      each?.(model, "update");
    });
    outcome.deviceLive.push(device.memory().live);
    outcome.hostLive.push(device.memory("host").live);
  }
  await Promise.all(reads);
  outcome.devicePeak = device.memory().peak;
  outcome.hostPeak = device.memory("host").peak;
  for (const [name, parameter] of model.namedParameters())
    outcome.params.set(name, (await parameter.data()).slice() as Float32Array);
  optimizer.dispose();
  model.dispose();
  return outcome;
}

const same = (a: Float32Array, b: Float32Array): boolean => Buffer.from(a.buffer).equals(Buffer.from(b.buffer));

const show = (states: States): string => JSON.stringify(states);

t.test("every combination gives the bits of the run on the device, and leaves nothing behind", async (t) => {
  for (const of of [
    { steps: 5 },
    { dtype: "bfloat16", steps: 5 },
    { tied: true, pieceElements: 1000, memory: { keepAttention: true } },
    { dtype: "bfloat16", tied: true, pieceElements: 7 },
    { memory: { checkpointEvery: 2 } },
    { memory: { checkpointEvery: 3, offload: "host" } },
    { frozen: (name) => /layers\.[13]\.|embed/.test(name) },
  ] satisfies Case[]) {
    const plain = await train(onDevice, of);
    for (const states of combinations.slice(1)) {
      const name = `${JSON.stringify(of)} ${show(states)}`;
      const other = await train(states, of);
      t.same(other.losses, plain.losses, `losses: ${name}`);
      t.same(other.norms, plain.norms, `norms: ${name}`);
      for (const [key, values] of plain.params)
        if (!same(values, other.params.get(key) as Float32Array)) t.fail(`${key}: ${name}`);
      t.equal(new Set(other.deviceLive).size, 1, `device bytes ${other.deviceLive}: ${name}`);
      t.equal(new Set(other.hostLive).size, 1, `host bytes ${other.hostLive}: ${name}`);
    }
  }
});

/** Bytes of tensors as allocators count them: small ones in steps of 256, up to 64 on the device not at all. */
const rounded = (tier: "device" | "host", sizes: Iterable<number>, itemBytes: number): number =>
  [...sizes].reduce(
    (sum, size) => sum + (tier === "device" && size * itemBytes <= 64 ? 0 : Math.ceil((size * itemBytes) / 256) * 256),
    0,
  );

t.test("the bytes are where they should be", async (t) => {
  for (const dtype of ["float32", "bfloat16"] as const) {
    const itemBytes = dtype === "float32" ? 4 : 2;
    const peaks = new Map<string, { params: number; grads: number; optimizer: number }>();
    let sizes: number[] = [];
    let largest = 0;
    for (const states of combinations) {
      const name = `${dtype} ${show(states)}`;
      await train(states, { dtype, steps: 2, pieceElements: 300 }, (model, when) => {
        sizes = model.parameters().map(({ size }) => size);
        largest = Math.max(...sizes);
        const live = cpu.memory().categoryLive;
        const host = cpu.memory("host").categoryLive;
        const away = (what: keyof States): boolean => states[what] === "host";
        const [all, hostAll] = [rounded("device", sizes, 4), rounded("host", sizes, 4)];
        const copies = dtype === "bfloat16" ? 3 : 2;
        t.equal(live.optimizer, away("optimizer") ? 0 : copies * all, `optimizer on the device: ${name}`);
        // Moments, master weights, and the step count.
        t.equal(host.optimizer, away("optimizer") ? copies * hostAll + 256 : 0, `optimizer on the host: ${name}`);
        t.equal(live.params, away("params") ? 0 : rounded("device", sizes, itemBytes), `parameters here: ${name}`);
        t.equal(host.params, away("params") ? rounded("host", sizes, itemBytes) : 0, `parameters there: ${name}`);
        if (when === "update") t.equal(live.grads, 0, `no gradients after the update: ${name}`);
        else if (away("gradients")) t.ok((live.grads as number) < all / 2, `gradients leave: ${name}`);
        else t.equal(live.grads, all, `gradients on the device: ${name}`);
        t.equal(host.grads, when === "backward" && away("gradients") ? hostAll : 0, `gradients there: ${name}`);
        t.equal(host.workspace, 0, `nothing is left of what passed through: ${name}`);
      });
      const { categoryPeak } = cpu.memory();
      peaks.set(show(states), categoryPeak as { params: number; grads: number; optimizer: number });
      // A window of two pieces of the gradient and, where there are no master weights, of the weights.
      const window = cpu.memory(states.optimizer === "host" ? "host" : "device").categoryPeak.workspace as number;
      if (states.optimizer === "host")
        t.ok(window <= 4 * rounded("host", [300], 4), `the window is ${window}: ${name}`);
    }
    const plain = peaks.get(show(onDevice)) as { params: number; grads: number; optimizer: number };
    const out = peaks.get(show(allOut)) as { params: number; grads: number; optimizer: number };
    t.equal(out.optimizer, 0);
    // Two neighbours of a model of six units; the loss has the head's gradient apart until its backward.
    t.ok(out.params < 0.7 * plain.params, `parameters: ${out.params} of ${plain.params}`);
    t.ok(out.grads < 0.75 * plain.grads, `gradients: ${out.grads} of ${plain.grads}`);
    t.ok(largest > 0);
  }
});

t.test("accumulation: gradients are added up on the host in another order, and in the same for the rest", async (t) => {
  for (const tied of [false, true]) {
    const plain = await train(onDevice, { passes: 3, steps: 5, tied });
    for (const states of tied ? [allOut] : combinations.slice(1)) {
      const name = `${show(states)}, tied ${tied}`;
      const other = await train(states, { passes: 3, steps: 5, tied });
      t.equal(new Set(other.hostLive).size, 1, `host bytes: ${name}`);
      t.equal(new Set(other.deviceLive).size, 1, `device bytes: ${name}`);
      for (const [key, values] of plain.params) {
        const got = other.params.get(key) as Float32Array;
        if (states.gradients === "none") {
          if (!same(values, got)) t.fail(`${key}: ${name}`);
          continue;
        }
        let [squares, norm] = [0, 0];
        values.forEach((value, i) => {
          squares += ((got[i] as number) - value) ** 2;
          norm += value ** 2;
        });
        if (!(Math.sqrt(squares / norm) <= 1e-5)) t.fail(`${key} is off by ${Math.sqrt(squares / norm)}: ${name}`);
      }
      for (const [i, norm] of plain.norms.entries())
        t.ok(Math.abs((other.norms[i] as number) - norm) <= 1e-6 * norm, `norm of step ${i + 1}: ${name}`);
    }
  }
});

t.test("a loop of one's own: states that move between steps, clipping in place, logits and evaluation", async (t) => {
  const run = async (places: States[]) => {
    const model = initModel(fields, { device: cpu, dtype: "float32", seed: 5, memory: { checkpointEvery: 1 } });
    const optimizer = new optim.AdamW(model.parameters(), {
      learningRate: 1e-2,
      offload: (places[0] as States).optimizer,
      pieceElements: 100,
    });
    const seen: number[] = [];
    for (const [step, states] of places.entries()) {
      model.configureMemory({ states });
      const loss = model.loss(batchOf(step, 0));
      loss.backward();
      const norm = nn.clipGradNorm(model.parameters(), 0.1);
      const clipped = nn.gradNorm(model.parameters(), 0);
      optimizer.step();
      optimizer.zeroGrad();
      const logits = noGrad(() => model.forward(batchOf(9, 0)));
      const evaluated = noGrad(() => model.loss(batchOf(9, 0)));
      const read = [loss, norm, clipped.norm, evaluated];
      seen.push(...(await Promise.all(read.map((tensor) => tensor.item()))));
      seen.push(...((await logits.data()) as Float32Array));
      for (const tensor of [...read, clipped.factor, clipped.finite, logits]) tensor.dispose();
      t.ok((seen.at(-1) as number) !== 0);
    }
    // Nobody walks this one back.
    scope(() => void model.loss(batchOf(0, 0)));
    model.zeroGrad();
    optimizer.dispose();
    model.dispose();
    return seen;
  };
  for (const optimizer of places) {
    const at = (gradients: Place, params: Place): States => ({ optimizer, gradients, params });
    const stay = await run([1, 2, 3, 4].map(() => ({ ...onDevice, optimizer })));
    t.ok(stay.every(Number.isFinite));
    t.same(await run([at("none", "none"), at("host", "host"), at("none", "host"), at("host", "none")]), stay);
    t.same(await run([at("host", "host"), at("none", "none"), at("host", "host"), at("none", "host")]), stay);
  }
  await cpu.synchronize();
});

t.test("what cannot be is refused, and nothing is held after it", async (t) => {
  const model = initModel(fields, { device: cpu, dtype: "float32", seed: 5, memory: { states: { params: "host" } } });
  const params = model.parameters();
  t.throws(() => model.loss(batchOf(0, 0)), {
    name: "ArgumentError",
    message: /states\.params is host and checkpointEvery 0.*set checkpointEvery to 1/,
  });
  t.ok(Number.isFinite(await noGrad(() => model.loss(batchOf(0, 0))).item()), "without a backward nothing is held");
  for (const states of [{ params: "disk" }, { gradients: true }, { optimizer: 1 }] as never[])
    t.throws(() => model.configureMemory({ states }), /states\.\w+ is .*, expected none or host/);
  t.throws(() => new optim.AdamW(params, { offload: "disk" as never }), /offload is "disk", expected none or host/);
  t.throws(() => new optim.AdamW(params, { pieceElements: 0 }), /pieceElements is 0/);
  const [first] = params;
  const x = (first as Tensor).shape;
  const onDeviceModel = initModel(fields, { device: cpu, dtype: "float32", seed: 5 });
  const other = onDeviceModel.model.embedTokens.weight;
  const message = /binary: a lies in host memory, b in device memory; copy one of them first/;
  t.throws(() => scope(() => void (first as Tensor).add(other)), { name: "ArgumentError", message }, `${x}`);
  const optimizer = new optim.AdamW(params);
  (first as Tensor).grad = other.narrow(0, 0, 2);
  t.throws(() => optimizer.step(), { name: "ArgumentError", message: /gradient has shape \[2,16\]/ });
  optimizer.zeroGrad();
  optimizer.dispose();
  model.dispose();
  onDeviceModel.dispose();
});

t.test("the meta device says the bytes", async (t) => {
  const meta = new Device("meta");
  for (const of of [{ passes: 2 }, { dtype: "bfloat16", memory: { checkpointEvery: 2 } }] satisfies Case[])
    for (const states of combinations) {
      const [real, said] = [await train(states, of), await train(states, { ...of, device: meta })];
      const name = `${JSON.stringify(of)} ${show(states)}`;
      t.same([said.devicePeak, said.hostPeak], [real.devicePeak, real.hostPeak], name);
      t.same([said.deviceLive, said.hostLive], [real.deviceLive, real.hostLive], name);
    }
});

t.test("an update that was cancelled on its way is the whole update or none of it", async (t) => {
  // On two queues: one has done its part when the other, which is busy, has not begun its own.
  const big = Tensor.empty([1 << 24], { device: cpu });
  const small = Tensor.full([1000], 0, { device: cpu });
  const into = Tensor.full([1000], 0, { device: cpu });
  const before = binding.stepsFinished(cpu.native);
  const marker = binding.lastMarker(cpu.native) + 1;
  const other = Tensor.empty([1 << 24], { device: cpu });
  for (let i = 0; i < 5; i++) binding.ops.copy(big.native(), other.native(), queues.copyIn);
  binding.beginUpdate(cpu.native);
  binding.ops.fill(small.native(), 7);
  binding.marker(cpu.native, marker);
  binding.ops.copy(small.native(), into.native(), queues.copyIn);
  binding.waitQueue(cpu.native, queues.compute, queues.copyIn);
  binding.endUpdate(cpu.native);
  while (binding.lastMarker(cpu.native) < marker) await new Promise((resolve) => setImmediate(resolve));
  cpu.cancel();
  await cpu.resume();
  t.ok((await into.data()).every((value) => value === 7));
  t.equal(binding.stepsFinished(cpu.native), before + 1);
  for (const tensor of [big, small, into, other]) tensor.dispose();

  // Training that is cancelled here and there goes on from a whole step.
  for (const states of [combinations[1], combinations[4], combinations[5], combinations[6], allOut] as States[]) {
    const memory = { checkpointEvery: 1, states };
    const model = initModel(fields, { device: cpu, dtype: "bfloat16", seed: 3, memory });
    const optimizer = new optim.AdamW(model.parameters(), {
      learningRate: 1e-2,
      offload: states.optimizer,
      pieceElements: 64,
    });
    const named: [string, Tensor][] = [
      ...model.namedParameters(),
      ...optimizer.namedState(new Map(model.parameters().map((parameter, i) => [parameter, String(i)]))),
    ];
    const state = async () => {
      const hash = createHash("sha256");
      for (const [, tensor] of named) hash.update(Buffer.from((await tensor.data()).slice().buffer));
      return hash.digest("hex");
    };
    const begin = async () => {
      for (const [, tensor] of named.slice(model.parameters().length)) tensor.fill(0);
      for (const [i, parameter] of model.parameters().entries())
        binding.ops.random(parameter.native(), 0, 0.02, i, 0, true);
      // Master weights are those of bfloat16 parameters before an update, as after it.
      for (const [i, parameter] of model.parameters().entries())
        binding.ops.copy(
          parameter.native(),
          (named.find(([name]) => name === `master.${i}`) as [string, Tensor])[1].native(),
        );
      await cpu.synchronize();
    };
    const step = (number: number) =>
      scope(() => {
        model.loss(batchOf(number, 0)).backward();
        const { factor, finite } = nn.gradNorm(model.parameters(), 1);
        optimizer.step({ factor, finite });
        optimizer.zeroGrad();
      });
    const steps = 4;
    const expected: string[] = [];
    await begin();
    for (let i = 0; i < steps; i++) {
      expected.push(await state());
      step(i);
    }
    expected.push(await state());
    for (let trial = 0; trial < 5; trial++) {
      await begin();
      const start = binding.stepsFinished(cpu.native);
      for (let i = 0; i < 2; i++) step(i);
      await new Promise((resolve) => setTimeout(resolve, 3 * trial));
      cpu.cancel();
      await cpu.resume();
      const finished = binding.stepsFinished(cpu.native) - start;
      t.equal(await state(), expected[finished], `stopped after ${finished} steps: ${show(states)}`);
      for (let i = finished; i < steps; i++) step(i);
      t.equal(await state(), expected[steps], `and went on: ${show(states)}`);
    }
    optimizer.dispose();
    model.dispose();
  }
});
