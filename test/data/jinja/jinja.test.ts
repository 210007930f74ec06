// Templates as Python's jinja2 renders them (expressions.json, which expressions.py beside it wrote); what is refused; what
// a template may take; what was printed for whom.
import { readFileSync } from "node:fs";
import t from "tap";
import { compile, LimitError, TemplateError, type Value } from "../../../lib/data/jinja/index.js";
import { parseJson } from "../../../lib/data/json.js";

const golden = JSON.parse(readFileSync(new URL("./expressions.json", import.meta.url), "utf8")) as {
  variables: string;
  rows: [template: string, text: string | null][];
};
const variables = parseJson(golden.variables) as unknown as Map<string, Value>;

/** The text, or the error of the template. */
function rendered(template: string): string | TemplateError {
  try {
    return compile(template).render(variables).text;
  } catch (error) {
    if (error instanceof TemplateError) return error;
    throw error;
  }
}

/** What Python renders and we do not: an error that says so. */
const refused = /not supported|no text that is the same in every run|not Markup/;

t.test("every expression and statement", async (t) => {
  let refusals = 0;
  for (const [template, text] of golden.rows) {
    const got = rendered(template);
    if (got instanceof TemplateError) {
      if (text === null) continue;
      if (refused.test(got.message)) refusals++;
      else t.fail(`${template}: ${got.message}, expected ${JSON.stringify(text)}`);
    } else if (got !== text) t.fail(`${template}: ${JSON.stringify(got)}, expected ${JSON.stringify(text)}`);
  }
  t.ok(golden.rows.length > 700, `${golden.rows.length} rows`);
  t.ok(refusals <= 6, `${refusals} are refused`);
});

t.test("an error has the line it is on", async (t) => {
  for (const [template, line, message] of [
    ["a\n{% if x %}\n{% endfor %}", 3, /unknown tag 'endfor'/],
    ["a\n\n{{ 1 +\n 'a' }}", 3, /unsupported operand/],
    ["{% for x in l %}\n{{ x.y.z }}{% endfor %}", 2, /'int object' has no attribute 'y'/],
    ["\n\n{{ raise_exception('roles must alternate') }}", 3, /^roles must alternate$/],
    ["{% macro m() %}\n{{ nope.x }}\n{% endmacro %}\n\n{{ m() }}", 2, /'nope' is undefined/],
    ["x\n{{ 'a' | zzz }}", 2, /No filter named 'zzz'/],
    ["x\r\ny\r\n{{ 'a", 3, /unexpected char|ends within a tag/],
    ["\n{% include 'a' %}", 2, /not supported in a chat template/],
  ] as const) {
    const got = rendered(template);
    t.match(got, { line, message }, JSON.stringify(template));
  }
});

t.test("what never ends or grows without end is stopped", async (t) => {
  const endless = [
    "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=['x']) %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{{ 'x' * 10 ** 10 }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 10 ** (10 ** 10) }}",
    "{{ 'x'.ljust(10 ** 12) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'x' | center(10 ** 11) }}",
    "{{ ('x' * 10 ** 8).replace('x', 'x' * 100) }}",
    "{{ ('x' * 10 ** 8) | join('y' * 100) }}",
    "{{ range(10 ** 9) | list }}",
    `{{ ${"(".repeat(3000)}1${")".repeat(3000)} }}`,
    `{{ ${"-".repeat(3000)}1 }}`,
    "{% set ns = namespace(l=[]) %}{% for a in range(2000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l }}",
  ];
  for (const template of endless) t.ok(rendered(template) instanceof TemplateError, template.slice(0, 80));
  t.ok(rendered(endless[1] as string) instanceof LimitError);
  const long = new Map<string, Value>([
    ["messages", Array.from({ length: 5000 }, () => new Map([["content", "word ".repeat(400)]]))],
  ]);
  const { text } = compile("{% for m in messages %}{{ m.content | trim }}\n{% endfor %}").render(long);
  t.equal(text.length, 5000 * 2000, "ten million characters are no trouble");
});

t.test("rounds of a loop over given objects, and marks, have their places in the text", async (t) => {
  const messages: Value[] = ["a", "b"].map((content) => new Map<Value, Value>([["content", content]]));
  const render = (template: string) =>
    compile(template).render(new Map<string, Value>([["messages", messages]]), { subjects: new Set(messages) });
  const plain = render("<s>{% for m in messages %}[{{ m.content }}]{% endfor %}</s>");
  t.same(
    plain.stretches.map(({ subject, begin, end }) => [messages.indexOf(subject), plain.text.slice(begin, end)]),
    [
      [0, "[a]"],
      [1, "[b]"],
    ],
  );
  t.notOk(plain.elsewhere);
  t.ok(render("{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{ x }}").elsewhere);
  const marked = render("{% for m in messages %}🎉{% generation %}{{ m.content }}!{% endgeneration %}{% endfor %}");
  t.same(
    marked.generations.map(([begin, end]) => marked.text.slice(begin, end)),
    ["a!", "b!"],
  );
  t.notOk(marked.misplaced);
  t.ok(render("{% set x %}{% generation %}a{% endgeneration %}{% endset %}{{ x }}").misplaced);
});
