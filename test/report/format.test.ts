// Times, sizes and numbers for people.

import t from "tap";
import { formatBytes, formatDuration, formatLoss, formatSi } from "../../lib/report/format.js";

t.test("numbers by thousands", async (t) => {
  const cases: [number, string][] = [
    [0, "0"],
    [7, "7"],
    [0.5, "0.50"],
    [999, "999"],
    [999.6, "1.00K"],
    [1000, "1.00K"],
    [9994, "9.99K"],
    [9996, "10.0K"],
    [12_345, "12.3K"],
    [99_960, "100K"],
    [999_400, "999K"],
    [999_600, "1.00M"],
    [1_234_567, "1.23M"],
    [8.03e9, "8.03G"],
    [5e22, "50000E"],
    [-1500, "-1.50K"],
    [Number.NaN, "?"],
    [Number.POSITIVE_INFINITY, "?"],
  ];
  for (const [value, shown] of cases) t.equal(formatSi(value), shown, String(value));
});

t.test("bytes", async (t) => {
  t.equal(formatBytes(0), "0 B");
  t.equal(formatBytes(1023), "1023 B");
  t.equal(formatBytes(1024), "1.00 KiB");
  t.equal(formatBytes(1.5 * 2 ** 30), "1.50 GiB");
  t.equal(formatBytes(2 ** 40 - 1), "1.00 TiB");
  t.equal(formatBytes(Number.NaN), "?");
});

t.test("durations", async (t) => {
  const cases: [number, string][] = [
    [0, "0.00s"],
    [-3, "0.00s"],
    [0.354, "0.35s"],
    [0.996, "1.0s"],
    [9.94, "9.9s"],
    [9.96, "10s"],
    [59.4, "59s"],
    [59.6, "1m 00s"],
    [185, "3m 05s"],
    [3599.6, "1h 00m"],
    [7620, "2h 07m"],
    [86_399, "1d 00h"],
    [3 * 86_400 + 4 * 3600, "3d 04h"],
    [Number.NaN, "?"],
    [Number.POSITIVE_INFINITY, "?"],
  ];
  for (const [seconds, shown] of cases) t.equal(formatDuration(seconds), shown, String(seconds));
});

t.test("losses", async (t) => {
  t.equal(formatLoss(2.34567), "2.3457");
  t.equal(formatLoss(null), "nan");
  t.equal(formatLoss(Number.POSITIVE_INFINITY), "nan");
  t.equal(formatLoss(1.5e7), "1.500e+7");
});
