// cuDNN, asked without a GPU, makes plans of our attention graphs for an H200 and an A100, in as many bytes of
// workspace as native/runtime reserves. Where cuDNN is not installed this says so and judges nothing.
//
// LONGSEQ_CUDNN_PLANS=all tries the whole table (npm run check:cudnn), else a part that takes some ten seconds.
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import t from "tap";
import { type GraphCase, graphCase, line } from "./cudnn_cases.js";
import { declaredValues, findCudnn, openedCudnn, plans } from "./plans_tool.js";

const million = 1 << 20;
const one = (direction: "forward" | "backward", rows: number, more: Partial<GraphCase> = {}) =>
  graphCase(direction, rows, more);
const packed = (rows: number, documents: number, more: Partial<GraphCase> = {}) => ({
  documents,
  rowsQ: rows,
  rowsK: rows,
  totalQ: million,
  totalK: million,
  packed: true,
  ...more,
});
/** The last 65,536 queries of a sequence of a million keys. */
const tail = { rowsQ: 65_536, rowsK: million, heads: 4, kvHeads: 1, shift: million - 65_536 };

/** Bytes a token (times total_q) that shared figures of cuDNN 9.24 give for the H200; the rest is below 1 MiB. */
interface Row {
  case: GraphCase;
  bytesPerToken: number;
}
const forward = (rows: number, more: Partial<GraphCase> = {}): Row => ({
  case: one("forward", rows, more),
  bytesPerToken: 0,
});
const backward = (rows: number, bytesPerToken: number, more: Partial<GraphCase> = {}): Row => ({
  case: one("backward", rows, more),
  bytesPerToken,
});

const part: Row[] = [
  forward(131_072),
  forward(524_296),
  forward(4 * million, { headSize: 256 }),
  forward(million, { window: 4096 }),
  forward(million, packed(65_536, 64)),
  forward(million, tail),
  backward(131_072, 32_896),
  backward(524_296, 32_896),
  backward(4 * million, 32_896),
  backward(million, 516, { heads: 1, kvHeads: 1 }),
  backward(million, 49_280, packed(65_536, 64)),
  backward(million, (2177 * million) / 65_536, tail),
];
const rest: Row[] = [
  ...[4096, million, 4 * million].flatMap((rows) => [64, 96, 128, 256].map((headSize) => forward(rows, { headSize }))),
  forward(16 * million, { heads: 1, kvHeads: 1 }),
  forward(524_296, { causal: false }),
  forward(524_296, { causal: false, window: 4096 }),
  forward(1000),
  forward(4096, { pad: 2048 }),
  forward(million, { ...tail, window: 4096 }),
  forward(million, { ...tail, shift: 300_000 }),
  forward(million, packed(65_536, 16, { window: 4096 })),
  forward(million, packed(65_536, 16, { bottomRight: true })),
  forward(million, packed(million, 1024)),
  backward(4096, 32_896),
  backward(million, 32_896),
  backward(million, 4_112, { heads: 4, kvHeads: 1 }),
  backward(16 * million, 516, { heads: 1, kvHeads: 1 }),
  backward(million, 16_512, { headSize: 64 }),
  backward(million, 24_704, { headSize: 96 }),
  backward(million, 65_664, { headSize: 256 }),
  backward(million, 32_896, { window: 4096 }),
  backward(million, 32_896, { window: 4096, causal: false }),
  backward(1000, 32_896),
  backward(4096, 32_896, { pad: 2048 }),
  backward(million, (2177 * million) / 65_536, { ...tail, causal: false, shift: 0 }),
  backward(million, (2177 * million) / 65_536, { ...tail, window: 4096 }),
  backward(million, 49_280, packed(65_536, 16, { window: 4096 })),
  backward(million, 49_280, packed(million, 1024)),
  backward(million, 49_280, packed(65_536, 16, { bottomRight: true })),
];

// Each plan compiles a kernel, which takes as long as it takes.
t.setTimeout(0);
const cudnn = findCudnn();
const table = process.env.LONGSEQ_CUDNN_PLANS === "all" ? [...part, ...rest] : part;

/** native/runtime refuses these on the device before anybody asks cuDNN. */
const refusedOn80 = (c: GraphCase) => c.direction === "backward" && (c.packed || c.headSize > 128);

const header = cudnn === null ? "" : join(cudnn.include, "cudnn_graph.h");
t.test("our declarations carry the values of cuDNN's header", async (t) => {
  if (!existsSync(header)) return t.comment("cuDNN's header is not installed: 0 values compared");
  const values = new Map(
    [...readFileSync(header, "utf8").matchAll(/^\s*CUDNN_(\w+)[\w\s]*=\s*(-?\d+)\s*,/gm)].map((match) => [
      match[1] as string,
      Number(match[2]),
    ]),
  );
  const declared = declaredValues();
  const wrong = [...declared].filter(([name, value]) => values.get(name) !== value);
  t.same(wrong, []);
  t.ok(declared.size > 100);
  t.comment(`${declared.size} values compared`);
});

t.test("a cuDNN of another version is named with what is needed", async (t) => {
  t.match(openedCudnn(90_800, 13_000), /libcudnn\.so\.9 cannot be used: its version is 9\.8\.0, at least 9\.21\.0/);
  t.match(openedCudnn(92_400, 12_090), /cannot be used: it is built for CUDA 12, one for CUDA 13 is needed/);
  t.match(openedCudnn(92_400, 13_000), /cannot be used: it lacks cudnn/);
});

for (const [device, capability] of [
  ["device_h200.json", 90],
  ["device_a100.json", 80],
] as const)
  t.test(`plans for ${device}`, { timeout: 0 }, async (t) => {
    const cases = table.filter((row) => capability >= 90 || !refusedOn80(row.case));
    if (cudnn === null)
      return t.comment(
        `cuDNN or NVRTC is not installed (node scripts/fetch_cuda.mjs): 0 of ${cases.length} plans judged`,
      );
    const found = await plans(
      cases.map((row) => row.case),
      device,
    );
    t.equal(found.length, cases.length);
    for (const [i, plan] of found.entries()) {
      const { case: c, bytesPerToken } = cases[i] as Row;
      const bytes = plan.planBytes + plan.graphBytes;
      t.ok(plan.ok, `${line(c)}: ${plan.reason ?? `engine ${plan.engine}, ${bytes} bytes`}`);
      // The figures are 9.24's; another version may want less, and where it wants more our own kernels run.
      if (plan.version !== 92400) {
        t.ok(bytes <= plan.reservedBytes, `${line(c)}: ${bytes} bytes fit into ${plan.reservedBytes}`);
        continue;
      }
      t.equal(bytes, plan.reservedBytes, `${line(c)}: native/runtime reserves what the plan wants`);
      if (capability < 90) continue;
      const off = bytes - bytesPerToken * c.totalQ;
      t.ok(off >= 0 && off < million, `${line(c)}: ${bytes} bytes, ${bytesPerToken} a token expected`);
    }
    t.comment(`${found.length} plans judged with ${cudnn.library}`);
  });
