// Models, gradients and whole training steps on a device beside the CPU: golden cases of transformers, every memory
// setting against the plain run, and the plain run against the CPU's. For the emulator in CI, for a GPU by check:gpu.
import * as path from "node:path";
import t from "tap";
import { Device, loadModel, nn } from "../../lib/index.js";
import { readAdapterConfig } from "../../lib/models/peft.js";
import { scopeAsync } from "../../lib/tensor/scope.js";
import { error, goldenFolder, withGolden } from "../models/helpers.js";
import { describe, plainSetting, relativeDifference, type Setting, Settings } from "../sequence/settings.js";

/** The tests, on the device of this name; its backend is open. */
export function trainingTests(name: string): void {
  const device = new Device(name, { threads: 2 });

  for (const golden of ["llama_packed", "mistral_window", "qwen2", "qwen3", "mixtral_balanced", "qwen2_moe"])
    t.test(`${golden}: loss and gradients are transformers'`, { timeout: 0 }, async (t) =>
      withGolden(golden, async ({ model: folder, golden, inputIds, labels, cuSeqlens, float32 }) =>
        scopeAsync(async () => {
          using model = await loadModel(folder, { device, dtype: "float32" });
          model.configureMemory({ tileMlp: 7, tileLoss: 5 });
          const loss = model.loss({ inputIds, labels, cuSeqlens });
          loss.backward();
          const value = await loss.item();
          t.ok(Math.abs(value / golden.loss - 1) <= 1e-6, `loss ${value}, expected ${golden.loss}`);
          for (const [parameter, tensor] of model.namedParameters()) {
            const wrong = error((await tensor.grad?.data()) as Float32Array, await float32(`grad.${parameter}`));
            t.ok(wrong <= 1e-4, `gradient of ${parameter}: ${wrong}`);
          }
          const norm = await nn.gradNorm(model.parameters(), 0).norm.item();
          t.ok(Math.abs(norm / golden.grad_norm - 1) <= 1e-5, `gradient norm ${norm}, expected ${golden.grad_norm}`);
        }),
      ),
    );

  t.test("bfloat16: as near to transformers' float64 as the CPU is", { timeout: 0 }, async (t) =>
    withGolden("llama_packed", async ({ model: folder, golden, inputIds, labels, cuSeqlens, float32 }) => {
      const errors: Map<string, number>[] = [];
      for (const where of [device, new Device("cpu", { threads: 2 })])
        await scopeAsync(async () => {
          using model = await loadModel(folder, { device: where, dtype: "bfloat16" });
          const loss = model.loss({ inputIds, labels, cuSeqlens });
          loss.backward();
          const off = new Map([["loss", Math.abs((await loss.item()) / golden.loss - 1)]]);
          for (const [parameter, tensor] of model.namedParameters()) {
            const grad = (await tensor.grad?.data()) as Float32Array;
            off.set(parameter, relativeDifference(grad, await float32(`grad.${parameter}`)));
          }
          errors.push(off);
        });
      for (const [what, cpu] of errors[1] ?? []) {
        const ours = errors[0]?.get(what) ?? Number.NaN;
        t.ok(ours <= 1.5 * cpu + 5e-3, `${what} is off by ${ours}, on the CPU by ${cpu}`);
      }
    }),
  );

  for (const dtype of ["float32", "bfloat16"] as const)
    t.test(`adapters in ${dtype} of a bfloat16 model: as near to float32 as on the CPU`, { timeout: 0 }, async (t) =>
      withGolden("llama3", async ({ model: folder, inputIds, labels, cuSeqlens }) => {
        const results: { loss: number; grads: Map<string, Float32Array> }[] = [];
        const { config } = await readAdapterConfig(path.join(goldenFolder, "../adapters/llama_all"));
        const cpu = new Device("cpu", { threads: 2 });
        for (const [where, of, own] of [
          [device, "bfloat16", dtype],
          [cpu, "bfloat16", dtype],
          [cpu, "float32", "float32"],
        ] as const)
          await scopeAsync(async () => {
            const adapter = { ...config, dtype: own, dropout: 0.25 };
            using model = await loadModel(folder, { device: where, dtype: of, adapter });
            const loss = model.loss({ inputIds, labels, cuSeqlens });
            loss.backward();
            const grads = new Map<string, Float32Array>();
            for (const [parameter, { requiresGrad, grad }] of model.namedParameters())
              if (requiresGrad) grads.set(parameter, (await grad?.data()) as Float32Array);
            results.push({ loss: await loss.item(), grads });
          });
        const [ours, theirs, exact] = results as [(typeof results)[0], (typeof results)[0], (typeof results)[0]];
        t.ok(Math.abs(ours.loss / exact.loss - 1) <= 5e-3, `loss ${ours.loss}, in float32 ${exact.loss}`);
        for (const [parameter, grad] of exact.grads) {
          const [off, cpuOff] = [ours, theirs].map(({ grads }) =>
            relativeDifference(grads.get(parameter) ?? [], grad),
          ) as [number, number];
          t.ok(off <= 1.5 * cpuOff + 5e-3, `gradient of ${parameter} is off by ${off}, on the CPU by ${cpuOff}`);
        }
      }),
    );

  const plain: Setting = { ...plainSetting, accumulation: 3, tied: true, packed: true, family: "llama" };
  const settings = new Settings(undefined, 2, name);

  for (const family of ["llama", "llama by adapters", "qwen2_moe by adapters"] as const)
    t.test(`${family}: five steps of AdamW are those of the CPU`, { timeout: 0 }, async (t) => {
      const cpu = new Settings();
      const setting = { ...plain, family };
      const [ours, theirs] = [await settings.plain(setting), await cpu.plain(setting)];
      for (const [step, loss] of theirs.losses.entries()) {
        const mine = ours.losses[step] as number;
        t.ok(Math.abs(mine / loss - 1) <= 1e-5, `loss of step ${step + 1}: ${mine}, on the CPU ${loss}`);
      }
      for (const [parameter, values] of theirs.params) {
        const difference = relativeDifference(ours.params.get(parameter) ?? [], values);
        t.ok(difference <= 1e-5, `${parameter}: ${difference}`);
      }
      cpu.dispose();
    });

  /** One a memory key, and one with all of them. */
  const each: Partial<Setting>[] = [
    { tileMlp: "uneven" },
    { tileLoss: "uneven" },
    { headChunks: 2 },
    { checkpointEvery: 1 },
    { checkpointEvery: 1, keepAttention: true },
    { checkpointEvery: 1, offload: "host" },
    { checkpointEvery: 1, offload: "host", deviceBytes: "some" },
    { checkpointEvery: 1, offload: "disk" },
    { checkpointEvery: 2 },
    { optimizer: "host" },
    { checkpointEvery: 1, params: "host" },
    { gradients: "host" },
    {
      tileMlp: "uneven",
      tileLoss: "uneven",
      headChunks: 2,
      checkpointEvery: 1,
      keepAttention: true,
      offload: "host",
      optimizer: "host",
      params: "host",
      gradients: "host",
    },
    { tileMlp: "uneven", headChunks: 2, checkpointEvery: 1, params: "host", family: "qwen2_moe by adapters" },
  ];
  for (const change of each) {
    const setting: Setting = { ...plain, ...change };
    t.test(`memory: ${describe(setting)}`, { timeout: 0 }, async (t) => {
      t.same(await settings.check(setting), []);
    });
  }

  t.teardown(() => settings.dispose());
}
