// The optimizers.
export { AdamW, type AdamWOptions, type StepOptions } from "./adamw.js";
