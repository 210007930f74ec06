// How many rows of expressions.json each template engine of npm renders as Python does, beside ours.
//
//   node --import=tsx test/data/jinja/judge.mjs FOLDER      FOLDER/node_modules holds the engines (npm install them there)
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { compile } from "../../../lib/data/jinja/index.ts";
import { parseJson } from "../../../lib/data/json.ts";

const golden = JSON.parse(readFileSync(new URL("./expressions.json", import.meta.url), "utf8"));
const plain = JSON.parse(golden.variables);
const require = createRequire(join(resolve(process.argv[2] ?? "."), "package.json"));

const engines = {
  ours: () => {
    const variables = parseJson(golden.variables);
    return (template) => compile(template).render(variables).text;
  },
  "@huggingface/jinja": () => {
    const { Environment, Interpreter, parse, tokenize } = require("@huggingface/jinja");
    return (template) => {
      const environment = new Environment();
      const names = { true: true, false: false, none: null, True: true, False: false, None: null, ...plain };
      for (const [name, value] of Object.entries(names)) environment.set(name, value);
      environment.set("range", (a, b, step = 1) => {
        const [from, to] = b === undefined ? [0, a] : [a, b];
        return Array.from({ length: Math.max(0, Math.ceil((to - from) / step)) }, (_, i) => from + i * step);
      });
      const program = parse(tokenize(template, { lstrip_blocks: true, trim_blocks: true }));
      return new Interpreter(environment).run(program).value;
    };
  },
  "minijinja-js": () => {
    const { Environment } = require("minijinja-js");
    const environment = new Environment();
    environment.enablePyCompat();
    environment.trimBlocks = true;
    environment.lstripBlocks = true;
    return (template) => environment.renderStr(template, plain);
  },
  nunjucks: () => {
    const nunjucks = require("nunjucks");
    const environment = new nunjucks.Environment(null, { autoescape: false, trimBlocks: true, lstripBlocks: true });
    return (template) => environment.renderString(template, plain);
  },
};

for (const [name, open] of Object.entries(engines)) {
  let render;
  try {
    render = open();
  } catch (error) {
    console.log(`${name}: not installed (${error.code ?? error.message})`);
    continue;
  }
  const counts = { right: 0, refused: 0, wrong: 0, missed: 0 };
  for (const [template, text] of golden.rows) {
    let got = null;
    // minijinja 2.11 does not come back from this one.
    if (name === "minijinja-js" && template.includes(".count('')")) {
      counts.refused++;
      continue;
    }
    try {
      got = String(render(template));
    } catch {
      // An error; whether it is one in Python too is seen below.
    }
    if (got === text) counts.right++;
    else if (got === null) counts.refused++;
    else if (text === null) counts.missed++;
    else counts.wrong++;
  }
  const { right, refused, wrong, missed } = counts;
  console.log(`| ${name} | ${right} | ${refused} | ${wrong} | ${missed} |`);
}
console.log(`${golden.rows.length} rows: right, an error instead of a text, another text, a text instead of an error`);
