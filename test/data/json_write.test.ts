// JSON as Python's json.dumps(indent=2) writes it; the expected texts are Python's own.

import t from "tap";
import { parseJson } from "../../lib/data/json.js";
import { floatText, writeJson } from "../../lib/data/json_write.js";

t.test("floats", (t) => {
  for (const text of [
    ...["64.0", "10000.0", "1e-05", "1e-06", "0.0001", "0.02", "1.5e-07", "1e+16", "1e+22", "1.7976931348623157e+308"],
    ...["1000000000000000.0", "9007199254740992.0", "123456789012345.6", "5e-324", "-0.0", "-2.5e-05", "0.1", "0.0"],
  ])
    t.equal(floatText(Number(text)), text);
  t.equal(floatText(Number.POSITIVE_INFINITY), "Infinity");
  t.equal(floatText(Number.NaN), "NaN");
  t.end();
});

t.test("what Python wrote comes out as it was", (t) => {
  const text = `{
  "b": 1.0,
  "10": [
    12345678901234567890,
    -3,
    0.5
  ],
  "2": {},
  "empty": [],
  "caf\\u00e9": "\\ud83d\\ude00 \\u2028 \\" \\\\ \\n \\u007f",
  "nested": {
    "z": null,
    "a": true
  }
}`;
  t.equal(writeJson(parseJson(text)), text);
  t.end();
});
