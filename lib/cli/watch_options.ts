// The arguments of `longseq watch`, apart from the server, which other commands need not load.

import { type Command, InvalidArgumentError, Option } from "commander";

export interface WatchCommandOptions {
  port: number;
  open: boolean;
  /** Ends with its standard input: how a run ends the page beside it, however the run ends. */
  untilStdinEnds?: boolean;
}

const port = (text: string): number => {
  if (!/^\d{1,5}$/.test(text) || Number(text) > 65535)
    throw new InvalidArgumentError("Expected a port from 1 to 65535, or 0 for any free one.");
  return Number(text);
};

/** The options of the command. */
export const withWatchOptions = (command: Command): Command =>
  command
    .description("serve a page that shows runs while they go on, and after")
    .argument("[dirs...]", "run folders, or folders that hold them; default: runs, or else the current folder")
    .usage("[DIR ...] [options]")
    .option("--port <port>", "on 127.0.0.1; 0: any free one", port, 0)
    .option("--open", "open the page in a browser, where there is a display", false)
    .addOption(new Option("--until-stdin-ends").hideHelp())
    .addHelpText(
      "after",
      "\nExamples:\n  longseq watch runs/first runs/second\n" +
        "  ssh -L 8123:127.0.0.1:8123 machine longseq watch runs --port 8123",
    );
