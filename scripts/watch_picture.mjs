// Draws docs/watch.png: the page of `longseq watch` over two real runs on this repository's own pages, the second still at
// work, on two ranks. Needs a built clone and Chromium (or what CHROMIUM names).
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { findChromium } from "./chromium.mjs";
import { root } from "./hash.mjs";

const scratch = mkdtempSync(join(tmpdir(), "longseq-picture-"));
const bin = join(root, "bin/longseq.mjs");
const rows = join(scratch, "rows.jsonl");
const pages = readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md"));
const texts = pages.map((name) => ({ text: readFileSync(join(root, "docs", name), "utf8") }));
writeFileSync(rows, texts.map((row) => `${JSON.stringify(row)}\n`).join(""));

/** Starts a run of a small Llama on bytes; returns its process. */
function train(name, learningRate, ranks, steps) {
  const config = {
    model: {
      init: {
        model_type: "llama",
        vocab_size: 259,
        hidden_size: 96,
        intermediate_size: 256,
        num_hidden_layers: 6,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        max_position_embeddings: 4096,
      },
    },
    data: { train: [rows], eval: [rows], tokenizer: "bytes", sequence_length: 1024, overlong: "split" },
    train: { steps, batch_size: 2, learning_rate: learningRate, warmup_steps: 20, schedule: "cosine", eval_every: 50 },
    threads: 1,
    output: { dir: join(scratch, "runs", name) },
  };
  const file = join(scratch, `${name}.yaml`);
  writeFileSync(file, JSON.stringify(config));
  return spawn(process.execPath, [bin, "train", file, "--quiet", "--nproc", String(ranks)], {
    stdio: ["ignore", 2, 2],
  });
}

const run = train("lr-1e-3", 1e-3, 1, 150);
await once(run, "close");
const second = train("lr-4e-3", 4e-3, 2, 200);
const watch = spawn(process.execPath, [bin, "watch", "runs", "--json"], {
  cwd: scratch,
  stdio: ["ignore", "pipe", "inherit"],
});
const [line] = await once(watch.stdout, "data");
const browser = await chromium.launch({
  executablePath: findChromium(),
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
});
try {
  const page = await browser.newPage({ viewport: { width: 1080, height: 775 } });
  await page.goto(JSON.parse(line).url);
  await page.waitForFunction(
    () =>
      [...document.querySelectorAll(".run .where")].some(({ textContent }) =>
        /^step 1[2-9]\d of 200/.test(textContent),
      ),
    null,
    { timeout: 300_000 },
  );
  await page.locator("#smoothing").fill("0.8");
  await page.waitForTimeout(500);
  await page.screenshot({ path: join(root, "docs/watch.png") });
} finally {
  await browser.close();
  watch.kill();
  second.kill();
  await once(second, "close");
  rmSync(scratch, { recursive: true, force: true });
}
