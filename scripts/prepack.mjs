// Runs before npm packs: refuses a tarball without current JavaScript and a current binary.
import { readStamp, typescriptHash } from "./hash.mjs";
import { prebuildCurrent } from "./prebuild_state.mjs";

const missing = [];
if (readStamp("dist/longseq.hash") !== typescriptHash())
  missing.push("dist/ is missing or older than lib/: npm run setup");
if (!prebuildCurrent()) missing.push("prebuilds/linux-x64 is empty or older than native/: npm run prebuild");
for (const line of missing) console.error(`longseq cannot be packed: ${line}`);
process.exitCode = missing.length > 0 ? 1 : 0;
