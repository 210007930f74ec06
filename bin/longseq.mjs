#!/usr/bin/env node
// The `longseq` command: finds the compiled command line of this package or clone and hands the arguments over.
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const main = join(root, "dist/lib/cli/main.js");
const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);

function refuse(message) {
  process.stderr.write(`${message}\n`);
  process.exitCode = 2;
}

if (process.platform !== "linux" || process.arch !== "x64") {
  refuse(
    `longseq: no build for ${process.platform}-${process.arch}: run it on a Linux x86-64 machine, ` +
      "in a linux/amd64 container, or in WSL 2 on Windows.",
  );
} else if (major < 20 || (major === 20 && minor < 19)) {
  refuse(`longseq: needs Node 20.19 or newer; this is ${process.versions.node} (${process.execPath}).`);
} else if (!existsSync(main)) {
  const setup = join(root, "scripts/setup.mjs");
  refuse(
    existsSync(setup)
      ? `longseq: this clone is not built yet; run: node ${setup}`
      : `longseq: ${main} is missing: the package is incomplete; install it again.`,
  );
} else {
  const cli = await import(pathToFileURL(main).href);
  process.exitCode = await cli.main(process.argv.slice(2));
}
