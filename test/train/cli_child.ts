// The command line as a child process of the tests, without a build.
import { main } from "../../lib/cli/main.js";

process.exitCode = await main(process.argv.slice(2));
