// Whether prebuilds/linux-x64 holds a binary made of the sources as they are now.
import { existsSync } from "node:fs";
import { join } from "node:path";
import { cudaHash, nativeHash, readStamp, root } from "./hash.mjs";

/** The folder that prebuildify fills and node-gyp-build looks into. */
export const prebuildFolder = join(root, "prebuilds/linux-x64");
/** The packed addon; the tag says which C library it wants. */
export const prebuildFile = join(prebuildFolder, "longseq.glibc.node");
/** Hash of the sources of the prebuild; outside the folder, so that it is not packed. */
export const prebuildStamp = "build/prebuild.hash";

export function prebuildCurrent() {
  return existsSync(prebuildFile) && readStamp(prebuildStamp) === nativeHash() + cudaHash();
}
