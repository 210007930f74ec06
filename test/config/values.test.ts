// Counts, numbers and sizes as people write them.

import t from "tap";
import {
  editDistance,
  parseCount,
  parseNumber,
  parseSize,
  showValue,
  toCamel,
  toSnake,
} from "../../lib/config/values.js";

t.test("counts", async (t) => {
  const good: [unknown, number][] = [
    [3, 3],
    [0, 0],
    ["500_000", 500_000],
    ["500K", 500_000],
    ["500k", 500_000],
    ["1M", 1_000_000],
    ["1.5M", 1_500_000],
    ["1.1M", 1_100_000],
    ["15.000001M", 15_000_001],
    ["1e3", 1000],
    ["12", 12],
    [1e6, 1_000_000],
    [Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  ];
  for (const [input, output] of good) t.equal(parseCount(input), output, String(input));
  for (const input of [1.5, -1, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, "1.5", "", " ", "K", "1_", "_1", "1__0"])
    t.equal(parseCount(input), undefined, `refuses ${input}`);
  for (const input of ["1.0000001M", "1G", "0x10", "1 000", "1,000", "-1", true, null, [], {}, "9".repeat(400)])
    t.equal(parseCount(input), undefined, `refuses ${input}`);
  t.ok(Object.is(parseCount(-0), 0), "no negative zero");
});

t.test("numbers", async (t) => {
  const good: [unknown, number][] = [
    [1e-5, 1e-5],
    ["1e-5", 1e-5],
    ["1.0e-8", 1e-8],
    [".5", 0.5],
    ["5.", 5],
    ["-2K", -2000],
    ["1_000.5", 1000.5],
  ];
  for (const [input, output] of good) t.equal(parseNumber(input), output, String(input));
  for (const input of ["nan", "inf", ".inf", "1e999", "", "e5", "1e", "--1", Number.NaN, true, null])
    t.equal(parseNumber(input), undefined, `refuses ${input}`);
});

t.test("sizes", async (t) => {
  const good: [unknown, number][] = [
    [1024, 1024],
    ["0", 0],
    ["80GiB", 80 * 2 ** 30],
    ["80 GiB", 80 * 2 ** 30],
    ["80GB", 80e9],
    ["1.5GiB", 1.5 * 2 ** 30],
    ["0.1GB", 1e8],
    ["512MiB", 512 * 2 ** 20],
    ["3MB", 3e6],
    ["4KiB", 4096],
    ["4KB", 4000],
    ["4kB", 4000],
    ["2TiB", 2 * 2 ** 40],
    ["1TB", 1e12],
    ["500_000", 500_000],
    ["12B", 12],
  ];
  for (const [input, output] of good) t.equal(parseSize(input), output, String(input));
  for (const input of [
    "80G",
    "80gib",
    "80Gb",
    "1.5",
    "1.5B",
    "-1GB",
    -1,
    1.5,
    "GiB",
    "",
    null,
    true,
    "9999999TiB",
    "1GB2",
  ])
    t.equal(parseSize(input), undefined, `refuses ${input}`);
});

t.test("spelling and display", async (t) => {
  t.equal(toCamel("clip_grad_norm"), "clipGradNorm");
  t.equal(toSnake("clipGradNorm"), "clip_grad_norm");
  t.equal(editDistance("", "abc"), 3);
  t.equal(editDistance("kitten", "sitting"), 3);
  t.equal(editDistance("memroy", "memory"), 1, "a swap is one edit");
  t.equal(editDistance("same", "same"), 0);
  t.equal(showValue("a\nb"), '"a\\nb"', "on one line");
  t.equal(showValue("x".repeat(200)).length, 80);
  t.equal(showValue(Number.NaN), "NaN");
  const loop: unknown[] = [];
  loop.push(loop);
  t.equal(typeof showValue(loop), "string");
});
