// The folder of the C headers, for the build files of addons that work on longseq tensors.

import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The nearest folder above this module that holds native/include: lib/ and dist/lib/ lie at different depths. */
function find(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const candidate = join(folder, "native", "include");
    if (existsSync(join(candidate, "longseq", "backend.h"))) return candidate;
    const parent = dirname(folder);
    if (parent === folder) throw new Error(`longseq's headers are missing above ${fileURLToPath(import.meta.url)}`);
    folder = parent;
  }
}

/** Absolute path of the folder that holds `longseq/backend.h`. */
const include: string = find();
export default include;
