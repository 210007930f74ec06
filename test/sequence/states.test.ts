// Optimizer states, gradients and parameters in host memory: the same bits as with all on the device, and the bytes
// that left it.
import t from "tap";
import { binding } from "../../lib/binding.js";
import { ArgumentError, OutOfMemoryError } from "../../lib/errors.js";
import { type CausalLM, Device, initModel, type MemoryOptions, nn, noGrad, optim } from "../../lib/index.js";
import { scope } from "../../lib/tensor/scope.js";

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
const everythingOut = combinations[7] as States;

const device = new Device("cpu", { threads: 2 });
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

const bytesOf = (model: CausalLM): number => model.parameters().reduce((sum, { size }) => sum + size, 0);

const batchOf = (step: number, pass: number) => ({
  inputIds: Int32Array.from({ length: T - 9 * pass }, (_, i) => (i * 7919 + step * 131 + pass * 17 + (i % 13)) % 53),
});

/** Some steps of AdamW; `each` looks at the device after a step's backward and after its update. */
async function train(states: States, of: Case = {}, each?: (model: CausalLM, when: "backward" | "update") => void) {
  const { dtype = "float32", tied = false, passes = 1, steps = 5, frozen = () => false } = of;
  t.equal(device.memory().live + device.memory("host").live, 0, "nothing is left of the run before");
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

const show = (states: States): string => JSON.stringify(states);

t.test("every combination gives the bits of the run on the device, and leaves nothing behind", async (t) => {
  for (const of of [
    {},
    { dtype: "bfloat16" },
    { tied: true },
    { pieceElements: 1000 },
    { dtype: "bfloat16", tied: true, pieceElements: 7 },
    { memory: { checkpointEvery: 2 } },
    { memory: { checkpointEvery: 3, offload: "host" } },
    { memory: { keepAttention: true } },
    { frozen: (name) => /layers\.[13]\.|embed/.test(name) },
  ] satisfies Case[]) {
    const plain = await train(onDevice, of);
    for (const states of combinations.slice(1)) {
      const name = `${JSON.stringify(of)} ${show(states)}`;
      const other = await train(states, of);
      t.same(other.losses, plain.losses, `losses: ${name}`);
      t.same(other.norms, plain.norms, `norms: ${name}`);
      for (const [key, values] of plain.params)
        if (!Buffer.from(values.buffer).equals(Buffer.from((other.params.get(key) as Float32Array).buffer)))
          t.fail(`${key}: ${name}`);
      t.equal(new Set(other.deviceLive).size, 1, `device bytes ${other.deviceLive}: ${name}`);
      t.equal(new Set(other.hostLive).size, 1, `host bytes ${other.hostLive}: ${name}`);
    }
  }
});
void [binding, ArgumentError, OutOfMemoryError, noGrad, everythingOut, bytesOf];
