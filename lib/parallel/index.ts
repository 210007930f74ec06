// What users call of several ranks.
export { Communicator } from "./communicator.js";
export { init, Job } from "./job.js";
