// Inverse frequencies and attention factors of every rope kind against those that transformers makes.

import { readFileSync } from "node:fs";
import t from "tap";
import { ArgumentError } from "../../lib/errors.js";
import { parseModelConfig } from "../../lib/models/registry.js";
import { type RopeParameters, rotaryEmbedding } from "../../lib/nn/rotary_embedding.js";

interface Case {
  fields: Record<string, unknown>;
  bits: number[];
  attention_factor: number;
  length?: number;
}
const cases: Case[] = JSON.parse(readFileSync(new URL("rotary_golden.json", import.meta.url), "utf8"));
const rest = { model_type: "llama", vocab_size: 8, intermediate_size: 8, num_hidden_layers: 1 };

t.test("as transformers has them", (t) => {
  let entries = 0;
  let unequal = 0;
  for (const { fields, bits, attention_factor, length } of cases) {
    const config = parseModelConfig({ ...rest, ...fields }, { file: "config.json" });
    const { inverseFrequencies, attentionFactor } = rotaryEmbedding(
      config.ropes[0] as RopeParameters,
      config.rotaryDim,
      length,
    );
    const ours = new Int32Array(inverseFrequencies.buffer);
    const what = JSON.stringify({ ...fields, length });
    t.equal(ours.length, bits.length, what);
    t.equal(attentionFactor, attention_factor, what);
    for (const [i, expected] of bits.entries()) {
      const ulps = Math.abs((ours[i] as number) - expected);
      // The reciprocal of a power that is one unit off may be two off.
      if (ulps > 2) t.fail(`${what}: entry ${i} is ${ulps} units in the last place off`);
      if (ulps > 0) unequal++;
      entries++;
    }
  }
  // torch's float32 power is not always the nearest number.
  t.ok(unequal <= entries / 100, `${unequal} of ${entries} entries differ`);
  t.equal(new Set(cases.map((c) => JSON.stringify([c.fields, c.length]))).size, 26);
  t.end();
});

t.test("an odd or empty head is refused", (t) => {
  for (const size of [0, 7, 2.5, Number.NaN])
    t.throws(() => rotaryEmbedding({ type: "default", theta: 10000 }, size), ArgumentError);
  t.end();
});
