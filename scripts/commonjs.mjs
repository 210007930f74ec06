// The package as CommonJS sees it: dist/cjs has a file for each entry that requires the module, and the declarations once
// more, since TypeScript reads those beside a package.json of "type": "module" as modules that `require` cannot load.
import { cpSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/** Entries of the package's `exports`. */
const entries = ["index", "include"];

/** Writes dist/cjs anew from dist/lib. Node loads modules by `require` from 20.19 on, all of them once for both sides. */
export function writeCommonjs(root) {
  const from = join(root, "dist/lib");
  const to = join(root, "dist/cjs");
  rmSync(to, { recursive: true, force: true });
  cpSync(from, join(to, "lib"), { recursive: true, filter: (path) => !path.endsWith(".js") });
  mkdirSync(join(to, "lib"), { recursive: true });
  writeFileSync(join(to, "package.json"), '{ "type": "commonjs" }\n');
  for (const entry of entries)
    writeFileSync(
      join(to, "lib", `${entry}.js`),
      `// The module ${entry}.js, for \`require\`.\nmodule.exports = require("../../lib/${entry}.js");\n`,
    );
}
