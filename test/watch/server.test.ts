// The server of the page over real run folders that grow, shrink, vanish and hold what they should not.

import {
  appendFileSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import t, { type Test } from "tap";
import { pageModules } from "../../lib/watch/assets.js";
import type { RunInfo } from "../../lib/watch/protocol.js";
import { WatchServer } from "../../lib/watch/server.js";
import { get, Listener, lines, step, steps } from "./helpers.js";

const isInfo = (heard: { event: string }) => ["run", "rows", "info"].includes(heard.event);

/** A server over folders, closed with the test. */
async function serve(t: Test, ...folders: string[]): Promise<WatchServer> {
  const server = await WatchServer.open({ folders });
  t.teardown(() => server.close());
  return server;
}

function listen(t: Test, server: WatchServer, lastId?: string): Listener {
  const listener = new Listener(server.url, lastId);
  t.teardown(() => listener.close());
  return listener;
}

t.test("who may ask, and what is answered", async (t) => {
  const folder = t.testdir({ secret: "secret", first: { "metrics.jsonl": lines(step(1)) } });
  const server = await serve(t, folder);
  const { port, url } = server;
  const base = new URL(url).pathname;
  const page = await get(port, base);
  t.equal(page.status, 200);
  t.match(page.headers["content-type"], /^text\/html/);
  const policy = String(page.headers["content-security-policy"]);
  t.match(policy, /default-src 'none'/);
  t.notMatch(policy, /unsafe|\*|https?:/);
  t.notMatch(page.body, /https?:|\/\//, "no outside resource is named");
  t.ok(base.length > 30, "a token");

  for (const host of ["localhost", "LOCALHOST:1", "127.0.0.1:9999", "[::1]:80"])
    t.equal((await get(port, base, { headers: { host } })).status, 200, `${host}: as through a tunnel`);
  for (const host of ["example.com", `evil.com:${port}`, "127.0.0.1.evil.com", "localhost.evil.com:80", "0.0.0.0"])
    t.equal((await get(port, base, { headers: { host } })).status, 403, host);
  for (const path of ["/", "/events", `${base.slice(0, -2)}/`, `/x${base.slice(1)}`, `http://127.0.0.1${base}`, "/%"])
    t.equal((await get(port, path)).status, 403, path);
  t.match((await get(port, "/")).body, /address is not complete/);
  t.equal((await get(port, base.slice(0, -1))).headers.location, base, "without the last slash");

  for (const path of [
    "../secret",
    "..%2fsecret",
    "secret",
    "first/metrics.jsonl",
    "watch/page/../../x",
    "%00",
    "__proto__",
  ])
    t.equal((await get(port, `${base}${path}`)).status, 404, path);
  for (const method of ["POST", "PUT", "DELETE", "OPTIONS"]) {
    const answer = await get(port, base, { method });
    t.equal(answer.status, 405, method);
    t.notOk("access-control-allow-origin" in answer.headers);
  }
  t.equal((await get(port, base, { method: "HEAD" })).body, "");
});

t.test("the page's files: all that its modules import is served", async (t) => {
  const server = await serve(t, t.testdir({}));
  const imported = new Set<string>();
  for (const module of [...pageModules, "uplot.js", "uplot.css", "watch.css"]) {
    const answer = await get(server.port, new URL(module, server.url).pathname);
    t.equal(answer.status, 200, module);
    t.equal(answer.headers["x-content-type-options"], "nosniff");
    if (!module.startsWith("watch/") && !module.startsWith("report/")) continue;
    t.match(answer.headers["content-type"], /^text\/(javascript|css)/);
    for (const [, name = ""] of answer.body.matchAll(/^(?:import|export) .*from "([^"]+)";$/gm))
      imported.add(name.startsWith(".") ? new URL(name, `${server.url}${module}`).href.slice(server.url.length) : name);
  }
  t.same(
    [...imported].filter((name) => name !== "uplot" && !(pageModules as readonly string[]).includes(name)),
    [],
  );
});

t.test("a run that grows; what was missed comes again by its id", async (t) => {
  const folder = t.testdir({});
  const file = join(folder, "first", "metrics.jsonl");
  const server = await serve(t, folder);
  const listener = listen(t, server);
  const places = await listener.until(({ event, data }) => event === "places" && data.notes.length > 0);
  t.match(places.data.notes[0], /no run yet/);
  mkdirSync(join(folder, "first"));
  writeFileSync(
    file,
    lines(
      { event: "plan", steps: 100, startStep: 0, device: "cpu <b>", dtype: "float32", parameters: 5e6 },
      step(1),
      { event: "warning", message: "<img src=x onerror=alert(1)>" },
      { event: "eval", step: 1, loss: 4 },
    ),
  );
  const run = await listener.until(({ event }) => event === "run");
  const info = run.data.info as RunInfo;
  t.match(info, { name: "first", state: "running", step: 1, steps: 100, warningCount: 1 });
  t.same(info.warnings, ["<img src=x onerror=alert(1)>"], "as it is: the page shows it as text");
  t.same(run.data.series.values[0], [1]);
  t.same(run.data.evals.values[3], [4]);
  t.ok(info.secondsLeft !== null && info.secondsLeft > 0);

  const before = listener.heard.length;
  const half = lines(step(2));
  appendFileSync(file, half.slice(0, 40));
  appendFileSync(file, half.slice(40) + lines(step(3)));
  const rows = await listener.until(({ event, data }) => event === "rows" && data.info.step === 3, before);
  t.match(rows.data.info, { step: 3 });
  appendFileSync(file, lines({ event: "progress", step: 4, fraction: 0.25, phase: "backward", layer: 3, layers: 4 }));
  const progress = await listener.until(({ event, data }) => event === "info" && data.info.progress !== null);
  t.same(progress.data.info.progress, { step: 4, fraction: 0.25, phase: "backward", layer: 3, layers: 4 });
  listener.close();

  const again = listen(t, server, run.id);
  await again.until(({ id }) => id === progress.id);
  t.same(
    again.heard.filter(isInfo),
    listener.heard.slice(listener.heard.findIndex(({ id }) => id === run.id) + 1).filter(isInfo),
    "what came after that event, and it alone",
  );
  for (const strange of ["", "0123456789ab-5", `${run.id}0000`, "x"]) {
    const whole = listen(t, server, strange);
    await whole.until(({ event }) => event === "run");
    t.equal(whole.heard[0]?.event, "begin", `from the start after ${JSON.stringify(strange)}`);
    whole.close();
  }
});

t.test("a resume cuts lines off; a folder vanishes, comes back, is replaced", async (t) => {
  const folder = t.testdir({ first: {}, second: {} });
  const file = (name: string) => join(folder, name, "metrics.jsonl");
  writeFileSync(file("first"), lines(...steps(1, 10)));
  writeFileSync(file("second"), lines(...steps(1, 3)));
  const server = await serve(t, folder);
  const listener = listen(t, server);
  const first = await listener.until(({ event, data }) => event === "run" && data.info.name === "first");
  await listener.until(({ event, data }) => event === "run" && data.info.name === "second");
  t.equal(first.data.info.step, 10);

  let from = listener.heard.length;
  const kept = lines(...steps(1, 5)).length;
  truncateSync(file("first"), kept);
  appendFileSync(file("first"), lines(step(6, { loss: 0.5 }), ...steps(7, 12)));
  const cut = await listener.until(({ event, data }) => event === "run" && data.info.step === 12, from);
  t.same(cut.data.series.values[0], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
  t.equal(cut.data.series.values[3][5], 0.5, "the new sixth step");
  t.equal(cut.data.run, first.data.run);

  from = listener.heard.length;
  renameSync(join(folder, "second"), join(folder, "..", `${t.name.length}-elsewhere`));
  await listener.until(({ event }) => event === "gone", from);
  renameSync(join(folder, "..", `${t.name.length}-elsewhere`), join(folder, "third"));
  const back = await listener.until(({ event, data }) => event === "run" && data.info.name === "third", from);
  t.equal(back.data.info.step, 3);

  from = listener.heard.length;
  rmSync(join(folder, "third"), { recursive: true });
  mkdirSync(join(folder, "third"));
  writeFileSync(file("third"), lines(step(1), { event: "done", step: 1 }));
  const replaced = await listener.until(({ event, data }) => event === "run" && data.info.name === "third", from);
  t.match(replaced.data.info, { step: 1, state: "finished" });
});

t.test("lines that are none, steps out of order, links, names with HTML, ranks", async (t) => {
  const name = "<b onclick=alert(1)>&amp;";
  const outside = t.testdir({ real: { "metrics.jsonl": lines(step(1)) }, runs: { [name]: {}, linked: {} } });
  const folder = join(outside, "runs");
  symlinkSync(join(outside, "real"), join(folder, "link"));
  symlinkSync(join(outside, "real/metrics.jsonl"), join(folder, "linked/metrics.jsonl"));
  const spread = { min: 1, max: 2, maxRank: 1 };
  const ranks = { seconds: { ...spread, each: [1, 2] }, devicePeakBytes: spread, hostPeakBytes: spread };
  const { seconds: _, ...without } = JSON.parse(lines(step(4)));
  writeFileSync(
    join(folder, name, "metrics.jsonl"),
    Buffer.concat([
      Buffer.from(lines(step(1), step(2, { loss: Number.NaN, skipped: true }))),
      Buffer.from('{"step":3,\n[1]\n17\n\n'),
      Buffer.from(lines(step(2))),
      Buffer.from(`${JSON.stringify(without)}\n`),
      Buffer.from([0xff, 0xfe, 0x0a]),
      Buffer.from('{"event":"eval"}\n{"event":"unknown"}\n{"__proto__":{"x":1},"event":"warning"}\n'),
      Buffer.from(lines(step(5, { ranks }))),
      Buffer.from('{"step":6'),
    ]),
  );
  const server = await serve(t, folder);
  const listener = listen(t, server);
  const { data } = await listener.until(({ event }) => event === "run");
  const info = data.info as RunInfo;
  t.equal(info.name, name);
  t.same(data.series.values[0], [1, 2, 5]);
  t.same(data.series.values[3].slice(1, 2), [null], "a loss that is no number");
  t.equal(info.skipped, 1);
  t.same(info.ranks?.seconds, { min: 1, max: 2, maxRank: 1, each: [1, 2] });
  t.equal(info.ranks?.hostPeakBytes.each, null);
  t.equal(info.remarkCount, 7, info.remarks.join("\n"));
  t.match(info.remarks[0], /^metrics\.jsonl:3: no JSON object, left out: \{"step":3,/);
  t.match(info.remarks[3], /^metrics\.jsonl:7: step 2 behind step 2, left out/);
  t.match(info.remarks[4], /^metrics\.jsonl:8: seconds is missing; .*the line is left out/);
  const { notes } = (await listener.until(({ event, data }) => event === "places" && data.notes.length > 0)).data;
  t.equal(listener.heard.filter(({ event }) => event === "run").length, 1, "links are not followed");
  t.match(notes.join("\n"), /link is a link, which is not followed; name it to watch it/);

  const named = await serve(t, join(folder, "link"), join(outside, "none"));
  const other = listen(t, named);
  t.match((await other.until(({ event }) => event === "run")).data.info, { step: 1 }, "a folder named may be a link");
});

t.test("folders named twice over, equal names, a run named itself", async (t) => {
  const run = () => ({ "metrics.jsonl": lines(step(1)) });
  const folder = t.testdir({ a: { first: run() }, b: { first: run(), second: run() } });
  const server = await serve(t, join(folder, "a"), join(folder, "b"), join(folder, "a"), join(folder, "b/second"));
  const listener = listen(t, server);
  for (const name of [join(folder, "a/first"), join(folder, "b/first"), "second"])
    await listener.until(({ event, data }) => event === "run" && data.info.name === name);
  t.equal(listener.heard.filter(({ event }) => event === "run").length, 3);
});

t.test("many steps at once come as the points they are drawn by", async (t) => {
  const folder = t.testdir({ first: {} });
  const file = join(folder, "first/metrics.jsonl");
  writeFileSync(file, "");
  const server = await serve(t, folder);
  const listener = listen(t, server);
  await listener.until(({ event }) => event === "run");
  writeFileSync(file, Array.from({ length: 40_000 }, (_, i) => lines(step(i + 1))).join(""));
  const { data } = await listener.until(({ event, data }) => event === "run" && data.info.step === 40_000);
  t.equal(data.series.per, 4);
  t.equal(data.series.values[0].length, 10_000);
  t.equal(data.series.values[0].at(-1), 40_000);
  t.equal(data.info.read, 1);
  t.notOk(
    listener.heard.some(({ event, data }) => event === "rows" && data.rows.length > 1000),
    "never row by row",
  );
});

t.test("a port that is taken", async (t) => {
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
  t.teardown(() => other.close());
  const { port } = other.address() as AddressInfo;
  await t.rejects(WatchServer.open({ folders: ["."], port }), {
    code: "CONFIG",
    message: `--port: ${port} is taken by another program; give another one, or leave it out to get a free one`,
  });
});

t.test("nothing is written, and closing ends those who listen", async (t) => {
  const folder = t.testdir({ first: { "metrics.jsonl": lines(...steps(1, 3)) } });
  const before = readFileSync(join(folder, "first/metrics.jsonl"));
  const server = await WatchServer.open({ folders: [folder] });
  const listener = new Listener(server.url);
  await listener.until(({ event }) => event === "run");
  await server.close();
  t.same(readFileSync(join(folder, "first/metrics.jsonl")), before);
  listener.close();
});
