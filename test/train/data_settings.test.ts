// Runs on data that configurations say more of: mixtures go on exactly, and a template is exported with the model.

import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import * as path from "node:path";
import { gzipSync } from "node:zlib";
import t from "tap";
import { CancelledError, ConfigError } from "../../lib/errors.js";
import { bits, figures, golden, run, tiny, writeRows } from "./helpers.js";

process.env.LONGSEQ_CACHE_DIR = mkdtempSync(path.join(tmpdir(), "longseq-cache-"));
t.teardown(() => rmSync(process.env.LONGSEQ_CACHE_DIR as string, { recursive: true }));

t.test("a mixture of formats goes on where it was stopped, bit for bit, and not with other weights", async (t) => {
  const folder = t.testdir({});
  const rows = writeRows(path.join(folder, "rows.jsonl"), 9);
  const packed = path.join(folder, "packed.jsonl.gz");
  writeFileSync(packed, gzipSync(readFileSync(writeRows(path.join(folder, "other.jsonl"), 14, 32))));
  const ids = path.join(folder, "ids.u16");
  writeFileSync(ids, new Uint8Array(Uint16Array.from({ length: 300 }, (_, i) => i % 60).buffer));
  const train = [
    { path: rows, weight: 2 },
    { path: packed, weight: 1 },
    { path: ids, weight: 1, eos: 59 },
  ];
  const config = (name: string, entries = train) =>
    tiny(rows, path.join(folder, name), {
      data: { train: entries, overlong: "split" },
      train: { steps: 9 },
    });
  await run(config("whole"));
  for (const after of [2, 6]) {
    const abort = new AbortController();
    const name = `parts-${after}`;
    const onItem = (item: { event?: unknown; step?: unknown }) => {
      if (item.event === undefined && item.step === after) abort.abort();
    };
    await t.rejects(run(config(name), { signal: abort.signal, onItem }), CancelledError);
    if (after === 2) {
      const other = train.map((entry, i) => ({ ...entry, weight: i + 1 }));
      await t.rejects(run(config(name, other)), { constructor: ConfigError, message: /data\.train/ });
    }
    await run(config(name));
    t.same(figures(path.join(folder, name)), figures(path.join(folder, "whole")));
    t.same(bits(path.join(folder, name, "model")), bits(path.join(folder, "whole/model")));
  }
});

t.test("data.chat_template renders the rows and is exported in the place of the tokenizer's", async (t) => {
  const folder = t.testdir({});
  const rows = path.join(folder, "rows.jsonl");
  const messages = [
    { role: "user", content: "hi" },
    { role: "assistant", content: "yes" },
  ];
  writeFileSync(rows, `${JSON.stringify({ messages })}\n`);
  const template = path.join(folder, "own.jinja");
  const source =
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
  writeFileSync(template, source);
  const config = (name: string, data: object) => {
    const base = tiny(rows, path.join(folder, name), {
      data: { tokenizer: path.join(golden, "data/llama3"), sequenceLength: 512, ...data },
      train: { steps: 1, batchSize: 1, warmupSteps: 0 },
    });
    return {
      ...base,
      model: { ...base.model, init: { ...base.model?.init, vocab_size: 512, max_position_embeddings: 512 } },
    };
  };
  const tokensOf = async (name: string, data: object) => (await run(config(name, data))).steps[0]?.validTokens;
  const plain = await tokensOf("plain", {});
  const own = await tokensOf("own", { chatTemplate: template });
  const all = await tokensOf("all", { chatTemplate: template, trainOn: "all" });
  t.ok((all ?? 0) > (own ?? 0) && (own ?? 0) > 0 && (plain ?? 0) > 0, `${plain} ${own} ${all}`);
  const exported = (name: string) => readFileSync(path.join(folder, name, "model/chat_template.jinja"), "utf8");
  t.equal(exported("own"), source);
  t.not(exported("plain"), source);
  t.notOk(readdirSync(path.join(folder, "own/model")).includes("additional_chat_templates"));
  await t.rejects(run(config("none", { chatTemplate: "none.jinja" })), {
    constructor: ConfigError,
    message: /there is no file "none.jinja"/,
  });
});
