// What the page is made of, beside its HTML: the compiled scripts of this package and those of uPlot, by their address.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { IoError } from "../errors.js";
import { style } from "./page_html.js";

/** Modules of lib/ that run in the page, by their place there: their imports of one another are addresses too. */
export const pageModules = [
  "watch/page/main.js",
  "watch/page/store.js",
  "watch/page/curves.js",
  "watch/page/charts.js",
  "watch/page/cards.js",
  "watch/page/dom.js",
  "watch/series.js",
  "report/format.js",
] as const;

export interface Asset {
  type: string;
  body: Buffer;
}

const script = "text/javascript; charset=utf-8";
const css = "text/css; charset=utf-8";

/** lib/ as it was compiled; from source that is in dist/. */
function compiled(): string {
  const own = dirname(dirname(fileURLToPath(import.meta.url)));
  return import.meta.url.endsWith(".ts") ? join(dirname(own), "dist/lib") : own;
}

/** All files of the page, read once. Throws IoError where one is missing. */
export function readAssets(): Map<string, Asset> {
  const assets = new Map<string, Asset>([["watch.css", { type: css, body: Buffer.from(style) }]]);
  const uplot = dirname(createRequire(import.meta.url).resolve("uplot/package.json"));
  const add = (address: string, path: string, type: string) => {
    try {
      assets.set(address, { type, body: readFileSync(path) });
    } catch (error) {
      throw new IoError(
        `${path}: cannot be read (${(error as NodeJS.ErrnoException).code}); the package is incomplete: install it again, or build the clone with node scripts/setup.mjs`,
        { path },
        { cause: error },
      );
    }
  };
  for (const module of pageModules) add(module, join(compiled(), module), script);
  add("uplot.js", join(uplot, "dist/uPlot.esm.js"), script);
  add("uplot.css", join(uplot, "dist/uPlot.min.css"), css);
  return assets;
}
