// Whole runs against PyTorch and transformers: losses, gradient norms, rates and counts of each step, and the weights.
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { openModelFolder, SafetensorsFile } from "../../lib/checkpoint/safetensors.js";
import type { ConfigInput } from "../../lib/config/index.js";
import { toCamel } from "../../lib/config/values.js";
import type { StepMetrics } from "../../lib/report/events.js";
import { golden, run } from "./helpers.js";

interface Golden {
  model: string;
  sequence_length: number;
  train: Record<string, unknown>;
  steps: { loss: number; grad_norm: number; learning_rate: number; tokens: number; valid_tokens: number }[];
}

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

const folder = path.join(golden, "training");

const settings = [
  undefined,
  { tileMlp: 5, tileLoss: 7 },
  { tileMlp: "off", tileLoss: "off" },
  { tileMlp: 5, checkpoint: { every: 1 } },
  { checkpoint: { every: 2, offload: "host" } },
  { tileMlp: "off", checkpoint: { offload: "host", keepAttention: false } },
] as const;

for (const name of readdirSync(folder)) {
  for (const memory of settings) {
    t.test(`${name}, memory ${JSON.stringify(memory ?? "auto")}`, async (t) => {
      const at = path.join(folder, name);
      const wanted = JSON.parse(readFileSync(path.join(at, "golden.json"), "utf8")) as Golden;
      const dir = path.join(t.testdir({}), "run");
      const config = {
        model: { path: path.join(at, wanted.model) },
        data: {
          train: [path.join(at, "rows.jsonl")],
          sequenceLength: wanted.sequence_length,
          packing: false,
          shuffle: false,
        },
        train: Object.fromEntries(Object.entries(wanted.train).map(([key, value]) => [toCamel(key), value])),
        ...(memory ? { memory } : {}),
        threads: 2,
        output: { dir },
      } as ConfigInput;
      const { steps } = await run(config);
      t.equal(steps.length, wanted.steps.length);
      for (const [i, expected] of wanted.steps.entries()) {
        const step = steps[i] as StepMetrics;
        t.equal(step.step, i + 1);
        const close = (value: number | null, reference: number, what: string) =>
          t.ok(
            Math.abs((value as number) - reference) <= 1e-4 * Math.abs(reference),
            `step ${i + 1}: ${what} ${value} for ${reference}`,
          );
        close(step.loss, expected.loss, "loss");
        close(step.gradNorm, expected.grad_norm, "gradient norm");
        t.ok(Math.abs(step.learningRate - expected.learning_rate) <= 1e-12, `rate ${step.learningRate}`);
        t.equal(step.tokens, expected.tokens);
        t.equal(step.validTokens, expected.valid_tokens);
        t.equal(step.skipped, false);
        t.equal(step.deviceLiveBytes, (steps[0] as StepMetrics).deviceLiveBytes, "a step leaves nothing behind");
      }
      // AdamW hides scale errors, so the norms above are compared too.
      using reference = await SafetensorsFile.open(path.join(at, "final.safetensors"));
      using exported = await openModelFolder(path.join(dir, "model"));
      t.same([...exported.entries.keys()].sort(), [...reference.entries.keys()].sort(), "the same tensors");
      for (const tensor of reference.entries.keys()) {
        const a = new Float32Array(await exported.readBytes(tensor, { dtype: "F32" }));
        const b = new Float32Array(await reference.readBytes(tensor, { dtype: "F32" }));
        let difference = 0;
        let size = 0;
        for (const [k, value] of b.entries()) {
          difference += ((a[k] as number) - value) ** 2;
          size += value ** 2;
        }
        const relative = Math.sqrt(difference / size);
        t.ok(relative <= 1e-5, `${tensor}: ${relative}`);
      }
    });
  }
}
