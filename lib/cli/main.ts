// The `longseq` command: its subcommands, their arguments, and the exit code.

import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { isOverride, loadConfig } from "../config/index.js";
import { parseCount, parseSize } from "../config/values.js";
import { packageVersion } from "../version.js";
import type { BenchOptions } from "./bench.js";
import type { EvalCommandOptions } from "./eval.js";
import type { GenerateCommandOptions } from "./generate.js";
import { exitCode, type LineStream, Output, UsageError } from "./output.js";
import type { PlanOptions } from "./plan.js";
import { type TrainParts, train, trainParts } from "./train.js";
import { type WatchCommandOptions, withWatchOptions } from "./watch_options.js";

/** What `main` works with; the process's own by default. */
export interface MainOptions {
  stdout?: LineStream;
  stderr?: LineStream;
  env?: NodeJS.ProcessEnv;
  parts?: Partial<TrainParts>;
}

/** Splits the words of a command into the one configuration file and overrides, in any order. */
export function splitWords(command: string, words: readonly string[]): { file: string; overrides: string[] } {
  const overrides = words.filter(isOverride);
  const files = words.filter((word) => !isOverride(word));
  const [file, ...more] = files;
  if (file === undefined)
    throw new UsageError(`missing configuration file; usage: longseq ${command} CONFIG [key.sub=value ...]`);
  if (more.length > 0)
    throw new UsageError(
      `got ${files.map((word) => JSON.stringify(word)).join(" and ")}; expected one configuration file, and overrides ` +
        "like train.steps=10",
    );
  return { file, overrides };
}

const wholeNumber = (least: number) => (text: string) => {
  if (!/^\d{1,15}$/.test(text) || Number(text) < least)
    throw new InvalidArgumentError(`Expected a whole number of at least ${least}.`);
  return Number(text);
};

const numberFrom = (least: number, most: number) => (text: string) => {
  const value = Number(text);
  if (text.trim() === "" || !(value >= least && value <= most))
    throw new InvalidArgumentError(
      most === Number.MAX_VALUE
        ? `Expected a number, ${least} or more.`
        : `Expected a number from ${least} to ${most}.`,
    );
  return value;
};

const share = (text: string) => {
  const value = Number(text);
  if (!(value > 0 && value <= 1)) throw new InvalidArgumentError("Expected a number above 0, at most 1.");
  return value;
};

/** Of an option that may come several times. */
const another = (text: string, before: string[]): string[] => [...before, text];

const seconds = (text: string) => {
  if (!/^\d{1,9}(\.\d+)?$/.test(text) || Number(text) <= 0)
    throw new InvalidArgumentError("Expected seconds, a number above 0.");
  return Number(text);
};

const hostAndPort = (text: string) => {
  const found = /^\[?([^\]\s]+?)\]?:(\d{1,5})$/.exec(text);
  if (found === null || Number(found[2]) < 1 || Number(found[2]) > 65535)
    throw new InvalidArgumentError("Expected HOST:PORT, the port from 1 to 65535.");
  return { host: found[1] as string, port: Number(found[2]) };
};

const tokenCount = (text: string) => {
  const tokens = parseCount(text);
  if (tokens === undefined || tokens < 2)
    throw new InvalidArgumentError("Expected tokens, at least 2, such as 500K or 1M.");
  return tokens;
};

const byteCount = (text: string) => {
  const bytes = parseSize(text);
  if (bytes === undefined || bytes < 1) throw new InvalidArgumentError("Expected bytes, such as 80GiB or 80GB.");
  return bytes;
};

/** Numbers separated by commas. */
const list = (one: (text: string) => number) => (text: string) => text.split(",").map((part) => one(part.trim()));

const solvable = (text: string) => {
  if (text !== "sequence" && text !== "gpus" && text !== "split")
    throw new InvalidArgumentError("Expected sequence, gpus or split.");
  return text;
};

interface RankOptions {
  nproc: number;
  nnodes?: number;
  nodeRank?: number;
  rendezvous?: { host: string; port: number };
  rendezvousTimeout?: number;
  maxRestarts: number;
}

/** What `train` and `launch` take of the ranks they start. */
const withRankOptions = (command: Command): Command =>
  command
    .option("--nproc <count>", "ranks on this machine, which share each sequence", wholeNumber(1), 1)
    .option("--rendezvous-timeout <seconds>", "how long ranks wait for each other at the start (300)", seconds)
    .option("--max-restarts <count>", "start a job that failed again, from its newest checkpoint", wholeNumber(0), 0);

const overridesHelp = `
CONFIG is a YAML file. Overrides are YAML values under the same keys, in any order with the options:
  train.steps=10  data.train='["a.jsonl", "b.jsonl"]'  memory.device_limit=8GiB
`;

/**
 * Runs the command line with these arguments (without node and script) and returns the exit code: 0 done, 1 failed,
 * 2 wrong usage or configuration, 130 or 143 stopped by SIGINT or SIGTERM with the state saved.
 */
export async function main(argv: string[], options: MainOptions = {}): Promise<number> {
  const env = options.env ?? process.env;
  const output = new Output(
    options.stdout ?? process.stdout,
    options.stderr ?? process.stderr,
    env.LONGSEQ_DEBUG === "1",
  );
  // Also where the arguments cannot be parsed.
  output.json = argv.includes("--json");
  const parts: TrainParts = { ...trainParts, ...options.parts };
  const version = packageVersion();
  let code: number = exitCode.done;

  const program = new Command("longseq")
    .description("Trains large language models on very long sequences.")
    .version(version, "--version", "print the version")
    .helpOption("-h, --help", "print this help")
    .helpCommand("help [command]", "print the help of a command")
    .option("--json", "machine-readable lines on stdout and nothing else there")
    .configureHelp({ showGlobalOptions: true, subcommandTerm: (command) => `${command.name()} ${command.usage()}` })
    .addHelpText(
      "after",
      `
Example:
  longseq doctor
  longseq train run.yaml train.steps=10 --json > metrics.jsonl

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130/143 stopped by a signal with the state saved
(a second signal ends at once: what was done since the last checkpoint is lost).`,
    )
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output.stdout.write(text),
      writeErr: (text) => output.stderr.write(text),
      // Reported below, in the same form as every other error.
      outputError: () => {},
    });

  /** Runs ranks of what `words` and options say. */
  const start = async (argv: string[], folder: string, options: RankOptions): Promise<number> => {
    const { launch } = await import("../parallel/launch.js");
    const { nnodes: count = 1, nodeRank: rank = 0, rendezvous } = options;
    if (count > 1 && rendezvous === undefined)
      throw new UsageError("several machines need --rendezvous HOST:PORT, an address of the first that all can reach");
    if (rank >= count) throw new UsageError(`--node-rank is ${rank}, but there are ${count} machines (--nnodes)`);
    return launch({
      nproc: options.nproc,
      nodes: rendezvous && { count, rank, ...rendezvous },
      argv,
      folder,
      note: (text) => output.note(text),
      env,
      timeout: options.rendezvousTimeout === undefined ? undefined : options.rendezvousTimeout * 1000,
      restarts: options.maxRestarts,
    });
  };
  /** A run of several ranks. A mistake in its configuration is told once, here. */
  const startTraining = (words: string[], quiet: boolean, options: RankOptions): Promise<number> => {
    const { file, overrides } = splitWords("train", words);
    const { output: to } = loadConfig(file, overrides);
    const argv = [process.argv[1] as string, "train", file, ...overrides];
    if (quiet) argv.push("--quiet");
    if (output.json) argv.push("--json");
    return start(argv, to.dir, options);
  };

  const trainRanks = async (words: string[], options: RankOptions & { quiet: boolean }): Promise<void> => {
    if (options.nproc > 1 || options.maxRestarts > 0) {
      code = await startTraining(words, options.quiet, options);
      return;
    }
    // Of a rank that another starter (torchrun, Slurm) started.
    if (options.rendezvousTimeout !== undefined)
      process.env.LONGSEQ_RENDEZVOUS_TIMEOUT = String(options.rendezvousTimeout);
    const { file, overrides } = splitWords("train", words);
    code = await train(file, overrides, { quiet: options.quiet }, output, parts);
  };

  withRankOptions(program.command("train"))
    .description("train, or go on with, the model that CONFIG describes")
    .argument("[words...]")
    .usage("CONFIG [key.sub=value ...] [options]")
    .option("-q, --quiet", "no progress on stderr", false)
    .option("--watch", "serve a page that shows the run, as longseq watch does", false)
    .addHelpText(
      "after",
      `${overridesHelp}\nExample:\n  longseq train run.yaml train.learning_rate=1e-4 output.dir=runs/second`,
    )
    .action(async (words: string[], options: RankOptions & { quiet: boolean; watch: boolean }) => {
      if (options.watch) {
        const { file, overrides } = splitWords("train", words);
        const { dir } = loadConfig(file, overrides).output;
        const { watchBeside } = await import("./watch_beside.js");
        await watchBeside(dir, output, () => trainRanks(words, options));
      } else await trainRanks(words, options);
    });

  withRankOptions(program.command("launch"))
    .description("start ranks of a training run, or of a script that calls parallel.init()")
    .argument("[words...]")
    .usage("[options] -- train CONFIG [key.sub=value ...] | SCRIPT [arguments]")
    .option("-q, --quiet", "no progress on stderr", false)
    .option("--nnodes <count>", "machines, each with as many ranks", wholeNumber(1))
    .option("--node-rank <number>", "which of them this is, from 0", wholeNumber(0))
    .option("--rendezvous <host:port>", "where the ranks meet, on the first machine", hostAndPort)
    .option("--logs <dir>", "the folder for ranks/N.log; default: output.dir, of a script the current folder")
    .addHelpText(
      "after",
      "\nExample:\n  longseq launch --nproc 4 -- train run.yaml train.steps=10\n  longseq launch --nproc 2 -- script.mjs",
    )
    .action(async (words: string[], options: RankOptions & { quiet: boolean; logs?: string }) => {
      const [what, ...rest] = words;
      if (what === undefined)
        throw new UsageError("missing what to launch; usage: longseq launch --nproc N -- train CONFIG | SCRIPT");
      if (what === "train") {
        code = await startTraining(rest, options.quiet, options);
        return;
      }
      if (!/\.[cm]?js$/.test(what) || !existsSync(what))
        throw new UsageError(
          `cannot launch ${JSON.stringify(what)}: expected train CONFIG, or a .js or .mjs file that is there`,
        );
      code = await start([what, ...rest], options.logs ?? ".", options);
    });

  program
    .command("plan")
    .description("say what training would take: memory, the choices of `auto`, time, the longest sequence")
    .argument("[words...]")
    .usage("CONFIG | --model FOLDER [key.sub=value ...] [options]")
    .option("--data", "open the data, instead of taking every sequence to be full and one document", false)
    .option("--model <folder>", "a folder with a config.json; without CONFIG what else is needed is left open")
    .option("--sequence <tokens>", "tokens of a sequence, such as 1M", tokenCount)
    .option("--gpus <count>", "GPUs, which share each sequence", wholeNumber(1))
    .option("--gpus-per-node <count>", "GPUs of a machine, which share its memory", wholeNumber(1), 8)
    .option("--device-memory <bytes>", "memory of a GPU, such as 80GiB", byteCount)
    .option("--host-memory <bytes>", "memory of a machine, such as 1900GiB", byteCount)
    .option(
      "--solve <what>",
      "sequence: the longest that fits; gpus: the fewest that do; split: the fastest ring, Ulysses, data and ZeRO",
      solvable,
    )
    .option("--rates <file>", "how fast the device is, from longseq bench --calibrate")
    .option("--compare", "several CONFIGs side by side", false)
    .addHelpText(
      "after",
      `${overridesHelp}\nExample:\n  longseq plan run.yaml data.sequence_length=1M memory.device_limit=8GiB\n` +
        "  longseq plan --model llama --sequence 1M --gpus 8 --device-memory 80GiB --host-memory 1900GiB",
    )
    .action(async (words: string[], options: PlanOptions) => {
      const { plan } = await import("./plan.js");
      const files = words.filter((word) => !isOverride(word));
      code = await plan(files, words.filter(isOverride), options, output);
    });

  program
    .command("bench")
    .description("measure how fast this machine is, for plans of it")
    .option("--calibrate <file>", "time training steps of small models (some minutes); the file is for plan --rates")
    .addOption(new Option("--device <device>", "what is measured").choices(["cpu", "cuda"]).default("cpu"))
    .option("--threads <count>", "of the CPU; default: all", wholeNumber(1))
    .option("--nproc <count>", "ranks on this machine, whose exchanges are timed too", wholeNumber(1), 1)
    .addHelpText("after", "\nExample:\n  longseq bench --calibrate rates.json --nproc 2")
    .action(async (options: BenchOptions & { nproc: number }) => {
      if (options.nproc > 1 && options.calibrate !== undefined) {
        const { calibrate, device, threads, nproc } = options;
        const argv = [process.argv[1] as string, "bench", "--calibrate", calibrate, "--device", device];
        if (threads !== undefined) argv.push("--threads", String(threads));
        if (output.json) argv.push("--json");
        const logs = mkdtempSync(join(tmpdir(), "longseq-bench-"));
        try {
          code = await start(argv, logs, { nproc, maxRestarts: 0 });
        } finally {
          rmSync(logs, { recursive: true, force: true });
        }
        return;
      }
      const { bench } = await import("./bench.js");
      code = await bench(options, output);
    });

  program
    .command("data")
    .description("print the first samples with their ids, the masked part marked")
    .argument("[words...]")
    .usage("CONFIG [key.sub=value ...] [options]")
    .option("-n, --samples <count>", "how many samples", wholeNumber(1), 3)
    .option("--tokens <count>", "most ids of one stretch; 0: all", wholeNumber(0), 32)
    .option("--eval", "data.eval instead of data.train", false)
    .option("--stats", "tokens by source, lengths, what is cut or dropped, how full sequences are", false)
    .addHelpText("after", `${overridesHelp}\nExample:\n  longseq data run.yaml --samples 1 data.shuffle=false`)
    .action(async (words: string[], opts: { samples: number; tokens: number; eval: boolean; stats: boolean }) => {
      const { file, overrides } = splitWords("data", words);
      const { showData } = await import("./data.js");
      code = await showData(file, overrides, opts, output);
    });

  program
    .command("generate")
    .description("print what a model says behind prompts; greedy unless a temperature is given")
    .argument("<dir>", "a Hugging Face folder, the output.dir of a finished run, or a PEFT adapter")
    .argument("[prompts...]")
    .usage("DIR [PROMPT...] [options]")
    .option(
      "-f, --file <file>",
      "prompts: rows of a .jsonl ({prompt}, {messages} or {input_ids}), or one text; - is standard input",
      another,
      [],
    )
    .option("--ids <ids>", "a prompt as token ids, such as 1,2,3", another, [])
    .option("--chat", "prompts are the user's turns of the chat template; without one, a conversation", false)
    .option("--system <text>", "how the conversation begins")
    .option("-n, --max-new-tokens <count>", "most tokens that follow a prompt", wholeNumber(1), 256)
    .option("-t, --temperature <number>", "0: always the likeliest token", numberFrom(0, Number.MAX_VALUE), 0)
    .option("--top-k <count>", "only so many of the likeliest; 0: all", wholeNumber(0), 0)
    .option("--top-p <share>", "only the likeliest that together reach this probability", share, 1)
    .option("--min-p <share>", "only those with this share of the likeliest one's probability", numberFrom(0, 1), 0)
    .option(
      "--repetition-penalty <factor>",
      "logits of tokens that were there are divided by it",
      numberFrom(0.001, 1000),
      1,
    )
    .option("--seed <number>", "of the choices", wholeNumber(0), 0)
    .option("--stop <text>", "ends an answer before this text; may be given several times", another, [])
    .option("--ignore-eos", "go on behind tokens that end an answer", false)
    .option("--logprobs", "with --json: the log-probability of each token", false)
    .option("--base <folder>", "of an adapter: the model that it is for; default: what it names")
    .option("--chat-template <file>", "in place of the folder's")
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(new Option("--dtype <dtype>", "default: float32 on the CPU").choices(["float32", "bfloat16"]))
    .option("--threads <count>", "of the CPU; default: all", wholeNumber(1))
    .addHelpText("after", '\nExample:\n  longseq generate runs/first "Once upon a time" -n 100 -t 0.8 --top-p 0.95')
    .action(async (dir: string, prompts: string[], options: GenerateCommandOptions) => {
      const { generate } = await import("./generate.js");
      code = await generate(dir, prompts, options, output);
    });

  program
    .command("eval")
    .description("loss and perplexity of data by file and position, and whether needles are found in long texts")
    .argument("<dir>", "a Hugging Face folder, the output.dir of a finished run, or a PEFT adapter")
    .argument("[data...]", "files or patterns, as in data.eval")
    .usage("DIR [DATA...] [options]")
    .option("--length <tokens>", "most tokens of a document; default: as many as it has", tokenCount)
    .addOption(
      new Option("--overlong <what>", "longer documents")
        .choices(["split", "truncate", "drop", "raise"])
        .default("split"),
    )
    .option("--bucket <tokens>", "positions in buckets of so many; default: they double from 128 on", wholeNumber(1))
    .option("--tokenizer <file>", 'in place of the folder\'s: a tokenizer.json, a folder, or "bytes"')
    .option("--needle", "hide a number in texts, and ask for it", false)
    .option("--lengths <list>", "tokens of the texts, such as 4K,16K; default: 1024 to 8192", list(tokenCount))
    .option("--depths <list>", "percent of the text before the needle", list(numberFrom(0, 100)), [0, 25, 50, 75, 100])
    .option("--trials <count>", "texts of each length and depth", wholeNumber(1), 3)
    .option("--seed <number>", "of names, numbers and texts", wholeNumber(0), 0)
    .option("--haystack <file>", "a text whose sentences hide the needle; default: a few built-in ones")
    .option("--chat", "the text and the question are a turn of the chat template", false)
    .option("--chat-template <file>", "in place of the folder's")
    .option("--out <folder>", "where results and drawings go; default: of a run its own folder")
    .option("--base <folder>", "of an adapter: the model that it is for; default: what it names")
    .option("--device <device>", "cpu, cuda or cuda:N", "cpu")
    .addOption(new Option("--dtype <dtype>", "default: float32 on the CPU").choices(["float32", "bfloat16"]))
    .option("--threads <count>", "of the CPU; default: all", wholeNumber(1))
    .addHelpText("after", "\nExample:\n  longseq eval runs/first held-out.jsonl --needle --lengths 4K,16K")
    .action(async (dir: string, files: string[], options: EvalCommandOptions) => {
      const { evaluate } = await import("./eval.js");
      code = await evaluate(dir, files, options, output);
    });

  program
    .command("merge")
    .description("write a model that an adapter was trained for, with the adapter in it, as one Hugging Face folder")
    .argument("<adapter>", "a folder with adapter_config.json, such as the model folder of a run")
    .argument("<out>", "the folder to write, which must not exist yet, or be empty")
    .usage("ADAPTER OUT [options]")
    .option("--base <folder>", "the model that the adapter is for; default: what the adapter names")
    .addHelpText("after", "\nExample:\n  longseq merge runs/first/model merged")
    .action(async (adapter: string, out: string, options: { base?: string }) => {
      const { merge } = await import("./merge.js");
      code = await merge(adapter, out, options, output);
    });

  program
    .command("report")
    .description("write DIR/report.html: loss, speed, the recorded steps and their memory")
    .argument("<dir>", "the output.dir of a run")
    .usage("DIR [options]")
    .addHelpText("after", "\nExample:\n  longseq report runs/first")
    .action(async (folder: string) => {
      const { report } = await import("./report.js");
      code = report(folder, output);
    });

  withWatchOptions(program.command("watch")).action(async (dirs: string[], options: WatchCommandOptions) => {
    const { watch } = await import("./watch.js");
    code = await watch(dirs, options, output);
  });

  program
    .command("doctor")
    .usage("[options]")
    .description("say what this machine offers and what stands in the way")
    .addHelpText("after", "\nExample:\n  longseq doctor --json")
    .action(async () => {
      const { doctor } = await import("./doctor.js");
      code = await doctor(version, output);
    });

  try {
    if (argv.length === 0) {
      program.outputHelp({ error: true });
      return exitCode.usage;
    }
    await program.parseAsync(argv, { from: "user" });
    return code;
  } catch (error) {
    if (!(error instanceof CommanderError)) return output.error(error);
    // Help and version end by a CommanderError too.
    if (error.exitCode === 0) return exitCode.done;
    const message = error.message
      .replace(/^error: /, "")
      .replace(/\s*\n\s*/g, " ")
      .replace(/\.$/, "");
    return output.error(
      new UsageError(
        message === "(outputHelp)" ? "missing command; see longseq --help" : `${message}; see longseq --help`,
      ),
    );
  }
}
