// `longseq merge`: an adapter and its base as one model.

import { formatBytes } from "../report/format.js";
import { exitCode, type Output } from "./output.js";

export interface MergeCommandOptions {
  base?: string;
}

export async function merge(
  adapter: string,
  target: string,
  { base }: MergeCommandOptions,
  output: Output,
): Promise<number> {
  const { mergeAdapter } = await import("../models/merge.js");
  let bytes = 0;
  const merged = await mergeAdapter(adapter, target, {
    base,
    onProgress: (_, total) => {
      bytes = total;
    },
  });
  if (output.json) output.record({ event: "merge", ...merged, bytes });
  else {
    const { replaced, tensors } = merged;
    const also = replaced > 0 ? `, ${replaced} took the place of the base's` : "";
    output.line(
      `merged ${adapter} into ${merged.base}: ${merged.merged} of ${tensors} tensors were changed${also}; ` +
        `the model is in ${merged.path} (${formatBytes(bytes)})`,
    );
  }
  return exitCode.done;
}
