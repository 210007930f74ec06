// The JSON parser: the values of Python's json module, the grammar of JSON.parse, and the place of the first fault.

import t from "tap";
import { JsonError, type JsonValue, MAX_JSON_DEPTH, parseJson, plainJson } from "../../lib/data/json.js";

t.test("integers, floats and their limits", async (t) => {
  const cases: [text: string, value: JsonValue][] = [
    ["0", 0n],
    ["-0", 0n],
    ["-0.0", -0],
    ["1.0", 1],
    ["1e0", 1],
    ["-2.5E+3", -2500],
    ["1e-7", 1e-7],
    ["1e400", Infinity],
    ["-1e400", -Infinity],
    ["12345678901234567890", 12345678901234567890n],
    ["-9007199254740993", -9007199254740993n],
    [` ${"7".repeat(4300)} `, BigInt("7".repeat(4300))],
  ];
  for (const [text, value] of cases) t.ok(Object.is(parseJson(text), value), text.slice(0, 40));
  t.throws(() => parseJson("7".repeat(4301)), { name: "JsonError", message: /more than 4300 digits/, at: 0 });
});

t.test("keys keep their order; of equal ones the last value counts at the first one's place", async (t) => {
  const text = '{"b": 1, "10": 2, "2": 3, "__proto__": {"a": []}, "b": 4.0, "": null}';
  const value = parseJson(text) as Map<string, JsonValue>;
  t.same([...value.keys()], ["b", "10", "2", "__proto__", ""]);
  t.equal(value.get("b"), 4);
  t.equal(value.get("10"), 2n);
  t.same([...(value.get("__proto__") as Map<string, JsonValue>).keys()], ["a"]);
  t.equal(Object.hasOwn(plainJson(value) as object, "__proto__"), true);
});

t.test("what JSON.parse takes gives the same values", async (t) => {
  const good = [
    '{"a":[1,-2.5e+3,true,false,null,"\\u00e9\\n"],"b":{}}',
    "[]",
    ' {"a" : [ ] } ',
    '"\\"\\\\\\/\\b\\f\\n\\r\\t\\uD83D\\ude00 \\ud83d \u2028\u007f"',
    '[[[{"x":[{}]}],[]],"",{"y":{"z":{}}}]',
    "\t\r\n-0.5E-2\n",
  ];
  for (const text of good) t.same(plainJson(parseJson(text)), JSON.parse(text));
});

t.test("the place of the first fault", async (t) => {
  const bad: [text: string, at: number][] = [
    ["", 0],
    ["{", 1],
    ['{"a"', 4],
    ['{"a":}', 5],
    ['{"a":1,}', 7],
    ["[1,]", 3],
    ["[1 2]", 3],
    ["01", 1],
    ["-01", 2],
    ["1.", 2],
    ["1.e5", 2],
    [".5", 0],
    ["+1", 0],
    ["-", 1],
    ["1e", 2],
    ["1e+", 3],
    ["tru", 3],
    ["True", 0],
    ["NaN", 0],
    ["-Infinity", 1],
    ['"\\x"', 2],
    ['"\\u12g4"', 5],
    ['"a\tb"', 2],
    ['"a', 2],
    ["[]]", 2],
    ["{]", 1],
    ["\u00a01", 0],
    ["\ufeff1", 0],
  ];
  for (const [text, at] of bad) {
    t.throws(() => JSON.parse(text), text);
    t.throws(() => parseJson(text), { name: "JsonError", at }, text);
  }
  t.throws(() => parseJson("[1, \u{1f600}]"), { message: 'unexpected "\u{1f600}"', at: 4 });
});

t.test("nesting has a limit, and no depth overflows the stack", async (t) => {
  const nested = (depth: number) => "[".repeat(depth) + "]".repeat(depth);
  t.same(plainJson(parseJson(nested(MAX_JSON_DEPTH))), JSON.parse(nested(MAX_JSON_DEPTH)));
  for (const text of [nested(MAX_JSON_DEPTH + 1), "[".repeat(1_000_000), '{"a":'.repeat(1_000_000)]) {
    t.throws(() => parseJson(text), JsonError);
    t.throws(() => parseJson(text), /lists and objects nest more than 500 deep/);
  }
});

t.test("changed by one character, it is JSON exactly where JSON.parse says so", async (t) => {
  const seed = '{"a":[1,-2.5e+3,true,null,"\\u00e9\\n"],"b":{"c":[]}}';
  const characters = '{}[]",:\\u0 1-+.eEtfn\t';
  for (let at = 0; at <= seed.length; at++) {
    for (const c of characters) {
      for (const text of [seed.slice(0, at) + c + seed.slice(at), seed.slice(0, at) + c + seed.slice(at + 1)]) {
        let expected: unknown;
        try {
          expected = JSON.parse(text);
        } catch {
          expected = undefined;
        }
        let value: unknown;
        try {
          value = plainJson(parseJson(text));
        } catch {
          value = undefined;
        }
        if (JSON.stringify(value) !== JSON.stringify(expected)) t.fail(text);
      }
    }
  }
  t.pass();
});
