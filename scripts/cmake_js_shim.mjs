#!/usr/bin/env node
// Stands where prebuildify expects node-gyp: builds the addon with cmake-js in build/Release instead.
import { spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { root } from "./hash.mjs";

// The arguments are node-gyp's (`rebuild --target=... --arch=x64 --release`); an addon on Node-API needs none of them
// but the configuration.
const config = process.argv.includes("--debug") ? "Debug" : "Release";
const result = spawnSync(
  process.execPath,
  [
    join(root, "node_modules/cmake-js/bin/cmake-js"),
    ...["build", "-G", "Ninja", "-l", "warn", "-B", config, "-p", String(availableParallelism())],
  ],
  { cwd: root, stdio: "inherit" },
);
process.exit(result.status ?? 1);
