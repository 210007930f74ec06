// `longseq plan` of jobs that are elsewhere: a model's config.json and machines given by options, what is solved for, and
// what it refuses.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import t from "tap";
import { main } from "../../lib/cli/main.js";
import { canonicalJson, parseConfig, yamlOf } from "../../lib/config/index.js";
import { ratesOf } from "../../lib/train/rates.js";

const folder = mkdtempSync(path.join(tmpdir(), "longseq-jobs-"));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));
const model = path.join(folder, "model");

t.before(async () => {
  const { mkdirSync } = await import("node:fs");
  mkdirSync(model);
  mkdirSync(path.join(folder, "empty"));
  writeFileSync(
    path.join(model, "config.json"),
    JSON.stringify({
      model_type: "llama",
      vocab_size: 512,
      hidden_size: 1024,
      intermediate_size: 2816,
      num_hidden_layers: 4,
      num_attention_heads: 8,
      num_key_value_heads: 4,
      max_position_embeddings: 4096,
      torch_dtype: "bfloat16",
    }),
  );
});

interface Ran {
  code: number;
  out: string;
  err: string;
}

async function run(...argv: string[]): Promise<Ran> {
  let [out, err] = ["", ""];
  const code = await main(["plan", ...argv], {
    stdout: { write: (text) => (out += text) },
    stderr: { write: (text) => (err += text) },
  });
  return { code, out, err };
}

type Event = Record<string, unknown> & { event: string };
const events = ({ out }: Ran): Event[] =>
  out
    .trimEnd()
    .split("\n")
    .map((line) => JSON.parse(line) as Event);
const only = (ran: Ran, event: string): Event => {
  const found = events(ran).find((one) => one.event === event);
  if (found === undefined) throw new Error(`no ${event} in ${ran.out}`);
  return found;
};

const small = ["--device-memory", "2GiB", "--host-memory", "16GiB"];

t.test("a folder with config.json alone, and the configuration that makes it come true", async (t) => {
  const words = ["--model", model, "--sequence", "64K", "--gpus", "2", ...small];
  const text = await run(...words);
  t.equal(text.code, 0, text.err);
  t.match(text.out, /^a step: 64,000 tokens, bfloat16 on cuda/);
  t.match(text.out, /\nranks: {2}2 ranks: data 1 x ring 1 x ulysses 2, ZeRO 3/);
  t.match(text.out, /\nbinds: {2}(device|host) memory, of whose limit \d+% are used/);
  t.match(text.out, /\ntime: .* \(attention .*, products .*, rest .*\)/);
  const [, settings = ""] = text.out.split("as a configuration:\n\n");
  const file = path.join(folder, "settings.yaml");
  writeFileSync(file, settings);
  const [first, again] = [await run(...words, "--json"), await run(file, "--json")];
  t.equal(again.code, 0, again.err);
  const [one, other] = [only(first, "plan"), only(again, "plan")];
  for (const key of ["device_peak_bytes", "host_peak_bytes", "tokens", "ranks", "states", "checkpoint_every"])
    t.same(other[key], one[key], key);
  t.equal(only(again, "longest").tokens, only(first, "longest").tokens, "what was left open stays so");
  t.equal(only(first, "configuration").yaml, settings.trimEnd().concat("\n"));
  t.equal(
    events(again).find(({ event }) => event === "configuration"),
    undefined,
    "it is there already",
  );
  // Half of the machine's for each of two.
  t.equal(one.host_limit_bytes, 8 * 2 ** 30);
  t.ok(Number(one.tokens_per_second) > 0);
});

t.test("the configuration keeps what was said", async (t) => {
  const words = [
    "adapter.r=4",
    "model.dtype=float32",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.seed=7",
  ];
  const ran = await run("--model", model, "--sequence", "8K", "--gpus", "2", ...small, ...words, "--json");
  const yaml = only(ran, "configuration").yaml as string;
  const config = parseConfig(yaml, "settings");
  t.match(config, {
    model: { path: model, dtype: "float32" },
    adapter: { r: 4 },
    data: { sequenceLength: 8000 },
    train: { batchSize: 4, microBatchSize: 2, seed: 7 },
    device: "cuda",
    parallel: { sequence: 2, ring: "auto", zero: "auto" },
    memory: { tileMlp: "auto", checkpoint: { every: "auto" } },
  });
  t.equal(canonicalJson(parseConfig(yamlOf(config), "again")), canonicalJson(config));
  const cpu = path.join(folder, "cpu.yaml");
  writeFileSync(cpu, yaml.replace("device: cuda", "device: cpu"));
  const long = only(await run(cpu, "--sequence", "4K", "--json"), "configuration").yaml as string;
  t.match(parseConfig(long, "long"), { device: "cpu", data: { sequenceLength: 4000 }, train: { seed: 7 } });
});

t.test("states go to the host where they must, and no sooner", async (t) => {
  const states = async (memory: string) =>
    only(await run("--model", model, "--sequence", "8K", "--device-memory", memory, "--json"), "plan").states;
  t.same(await states("8GiB"), { optimizer: "none", params: "none", gradients: "none" });
  t.same(await states("1152MiB"), { optimizer: "host", params: "none", gradients: "none" });
  const given = await run(
    "--model",
    model,
    "--sequence",
    "8K",
    "--device-memory",
    "8GiB",
    "memory.offload.optimizer=host",
    "--json",
  );
  t.equal((only(given, "plan").states as { optimizer: string }).optimizer, "host", "what is said is done");
});

t.test("the longest sequence, and the fewest GPUs", async (t) => {
  const longest = only(await run("--model", model, "--solve", "sequence", ...small, "--json"), "solved");
  const tokens = longest.tokens as number;
  const at = (length: number) => run("--model", model, "--sequence", String(Math.floor(length)), ...small, "--json");
  t.equal((await at(tokens)).code, 0, `${tokens} tokens fit`);
  const beyond = await at(tokens * 1.03);
  t.equal(beyond.code, 2, `${tokens * 1.03} do not`);
  t.match(beyond.err, /memory\.(device|host)_limit/);

  const sequence = String(tokens * 3);
  const options = ["--model", model, "--sequence", sequence, "--gpus-per-node", "4", ...small, "--json"];
  const fewest = only(await run(...options, "--solve", "gpus"), "solved").gpus as number;
  t.ok(fewest > 1, `${fewest} GPUs`);
  t.equal((await run(...options, "--gpus", String(fewest))).code, 0);
  const fewer = fewest > 4 ? fewest - 4 : fewest / 2;
  t.equal((await run(...options, "--gpus", String(fewer))).code, 2, `${fewer} are too few`);
});

t.test("the fastest split, by rates of one's own", async (t) => {
  const rates = path.join(folder, "rates.json");
  const given = ratesOf("cuda");
  const options = ["--model", model, "--sequence", "8K", "--gpus", "2", ...small, "--json", "train.batch_size=2"];
  const splits = async (more: Partial<typeof given>) => {
    writeFileSync(rates, JSON.stringify({ ...given, ...more }));
    const found = await run(...options, "--solve", "split", "--rates", rates);
    t.equal(found.code, 0, found.err);
    const all = events(found).filter(({ event }) => event === "split");
    const seconds = all.map((one) => one.estimated_seconds as number);
    t.same(
      seconds,
      seconds.toSorted((a, b) => a - b),
      "the fastest first",
    );
    const plan = only(found, "plan");
    t.same(plan.ranks, all[0]?.ranks, "whose plan is shown");
    t.equal(plan.estimated_seconds, seconds[0]);
    return { all, plan };
  };
  const { all, plan } = await splits({});
  const names = all.map(({ ranks }) => JSON.stringify(ranks));
  t.equal(new Set(names).size, names.length, "each once");
  for (const [key, values] of [
    ["data", [1, 2]],
    ["ring", [1, 2]],
    ["zero", [0, 1, 2, 3]],
  ] as const)
    t.same(new Set(all.map(({ ranks }) => (ranks as Record<string, number>)[key])), new Set(values), key);

  // Where exchanges cost nothing else matters; where they cost much, those that exchange least win.
  const slow = await splits({ links: { node: [[1, 1e8]], network: [[1, 1e8]] } });
  const exchanged = (one: Record<string, unknown>) => (one.seconds_by_part as { exchanges: number }).exchanges;
  t.ok(exchanged(slow.plan) > 10 * exchanged(plan), "exchanges are seen");
  t.equal((slow.plan.ranks as { data: number }).data, 2, "each group has a sequence of its own");
});

t.test("side by side", async (t) => {
  const file = (name: string, tokens: number) => {
    const where = path.join(folder, name);
    const config = {
      model: { path: model },
      data: { train: ["none"], sequence_length: tokens },
      train: { steps: 1 },
      output: { dir: "run" },
    };
    writeFileSync(where, JSON.stringify(config));
    return where;
  };
  const files = [file("short.yaml", 4096), file("long.yaml", 8192)];
  const limits = ["memory.device_limit=2GiB", "memory.host_limit=2GiB"];
  const { code, out, err } = await run(...files, "--compare", ...limits);
  t.equal(code, 0, err);
  const table = out.slice(out.lastIndexOf("\n\n") + 2).split("\n");
  t.match(table[0], /^ +short\.yaml +long\.yaml$/);
  t.match(table[1], /^tokens a sequence +4,096 +8,192$/);
  t.match(table.at(-2), /^rung /);
  const named = events(await run(...files, "--compare", "--json", ...limits)).map(({ configuration }) => configuration);
  t.same(new Set(named), new Set(files), "lines for programs say what they are about");
  const several = await run(...files);
  t.equal(several.code, 2);
  t.match(several.err, /give --compare for several/);
});

/** A file of the rates of a kind of device, without one of them. */
function rates(kind: string, section?: "ops" | "copies" | "links", without?: string): string {
  const all = structuredClone(ratesOf(kind));
  if (section !== undefined) delete all[section][without as string];
  const file = path.join(folder, `${kind}-${without}.json`);
  writeFileSync(file, JSON.stringify(all));
  return file;
}

t.test("what cannot be planned", async (t) => {
  for (const [words, message] of [
    [[], /missing what to plan; usage: longseq plan CONFIG .*--model FOLDER/],
    [["--model", path.join(folder, "empty")], /config\.json/],
    [["--model", path.join(folder, "nowhere")], /nowhere/],
    [["--model", model, "--sequence", "0"], /Expected tokens, at least 2, such as 500K or 1M/],
    [["--model", model, "--sequence", "1"], /Expected tokens, at least 2/],
    [["--model", model, "--device-memory", "0"], /Expected bytes, such as 80GiB/],
    [["--model", model, "--device-memory", "80 gigs"], /Expected bytes/],
    [["--model", model, "--gpus", "0"], /whole number of at least 1/],
    [["--model", model, "--solve", "speed"], /Expected sequence, gpus or split/],
    [["--model", model, "--solve", "split", "--sequence", "8K"], /--solve split: among how many ranks\? give --gpus/],
    [
      ["--model", model, "--solve", "split", "--gpus", "2", "--sequence", "90M", ...small],
      /no way to share the work among 2/,
    ],
    [
      ["--model", model, "--sequence", "8K", "--rates", path.join(folder, "none.json"), ...small],
      /cannot read the rates/,
    ],
    [["--model", model, "--solve", "gpus", "--gpus", "8"], /give only one of them/],
    [
      ["--model", model, "--gpus", "8", "parallel.sequence=4", ...small],
      /--gpus together with parallel\.sequence=4; give only one of them/,
    ],
    [
      ["--model", model, "--gpus", "8", "parallel={sequence: 4}", ...small],
      /--gpus together with parallel=\{sequence: 4\}; give only one/,
    ],
    [
      ["--model", model, "--sequence", "8K", "data.sequenceLength=4K", ...small],
      /--sequence together with data\.sequenceLength=4K; give only one/,
    ],
    [
      ["--model", model, "--solve", "sequence", "data.sequence_length=4K", ...small],
      /--solve sequence together with data\.sequence_length=4K/,
    ],
    [["--model", model, ...small, "device=cpu"], /--device-memory together with device=cpu; give only one of them/],
    [
      ["--model", model, "--sequence", "8K", "--device-memory", "100"],
      /--device-memory is 100 B, of which CUDA's libraries take 512 MiB; give the memory of a GPU/,
    ],
    [
      ["--model", model, "--sequence", "4000M", ...small],
      /a micro-batch of 4000000000 tokens is longer than what is planned for ranks without a ring, which is at most 268435456/,
    ],
    [
      ["--model", model, "--sequence", "8K", "--rates", rates("cpu"), ...small],
      /device of kind cpu, but the plan is for/,
    ],
    [
      ["--model", model, "--sequence", "8K", "--rates", rates("cuda", "links", "node"), ...small],
      /links has no "node"; write it again/,
    ],
    [
      ["--model", model, "--sequence", "8K", "--rates", rates("cuda", "ops", "stream"), ...small],
      /ops has no "stream"/,
    ],
    [
      ["--model", model, "--sequence", "8K", "--rates", rates("cuda", "ops", "products:bfloat16"), ...small],
      /ops has no "products"/,
    ],
    [["--model", model, "--solve", "sequence", "--sequence", "8K"], /give only one of them/],
    [
      ["--model", model, "--gpus", "3", "parallel.data=2", "train.batch_size=2", ...small],
      /--gpus is 3, which parallel\.data \(2\) does not/,
    ],
    [["--model", model, "--gpus", "6", "parallel.ring=1", ...small], /8 query heads do not divide among 6 ranks/],
    [["--model", model, "--sequence", "64K"], /give its memory, such as --device-memory 139GiB/],
    [["--model", model, "--solve", "sequence", "--device-memory", "600MiB"], /not even one token fits/],
    [
      ["--model", model, "--sequence", "200M", "--solve", "gpus", "--device-memory", "601MiB", "--host-memory", "1GiB"],
      /fit on no number of GPUs up to 4,096/,
    ],
  ] as const) {
    const { code, err } = await run(...words);
    t.equal(
      code,
      words[1]?.includes("nowhere") || words[1]?.includes("empty") ? code : 2,
      `${words.join(" ")}: ${err}`,
    );
    t.not(code, 0);
    t.match(err, message, words.join(" "));
  }
});
