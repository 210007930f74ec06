// What the tests of lib/watch share: lines of metrics, a listener of the server's events, and waiting for what is to come.

import { type IncomingMessage, request } from "node:http";
import type { RunItem, StepMetrics } from "../../lib/report/events.js";
import { toLine } from "../../lib/report/metrics.js";

/** The figures of a step that no run has made. */
export function step(number: number, more: Partial<StepMetrics> = {}): StepMetrics {
  return {
    step: number,
    epoch: number / 100,
    loss: 5 / Math.sqrt(number),
    gradNorm: 1 + 1 / number,
    learningRate: 1e-4,
    tokens: 1000,
    validTokens: 990,
    seconds: 0.5,
    tokensPerSecond: 2000,
    modelTflops: 0.1,
    hardwareTflops: 0.11,
    mfu: null,
    devicePeakBytes: 2 ** 30,
    deviceLiveBytes: 2 ** 29,
    hostPeakBytes: 0,
    rssPeakBytes: 2 ** 31,
    skipped: false,
    ...more,
  };
}

/** The lines of items as a run writes them. */
export const lines = (...items: RunItem[]): string => items.map(toLine).join("");

export const steps = (from: number, to: number): StepMetrics[] =>
  Array.from({ length: to - from + 1 }, (_, i) => step(from + i));

export interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  body: string;
}

/** A request whose path and headers go out as they are. */
export function get(
  port: number,
  path: string,
  { headers = {}, method = "GET" }: { headers?: Record<string, string>; method?: string } = {},
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const sent = request({ host: "127.0.0.1", port, path, method, headers, agent: false }, (response) => {
      let body = "";
      response.setEncoding("utf8").on("data", (part: string) => {
        body += part;
      });
      response.on("end", () => resolve({ status: response.statusCode ?? 0, headers: response.headers, body }));
    });
    sent.on("error", reject);
    sent.end();
  });
}

export interface Heard {
  id: string;
  event: string;
  // biome-ignore lint/suspicious/noExplicitAny: each event has its own shape, which the tests look at
  data: any;
}

/** Listens to the server's events until `close`. */
export class Listener {
  readonly heard: Heard[] = [];
  #wake: () => void = () => {};
  #close: () => void = () => {};

  constructor(url: string, lastEventId?: string) {
    const headers = lastEventId === undefined ? {} : { "Last-Event-ID": lastEventId };
    const sent = request(`${url}events`, { headers, agent: false }, (response) => {
      let rest = "";
      response.setEncoding("utf8").on("data", (part: string) => {
        const blocks = (rest + part).split("\n\n");
        rest = blocks.pop() as string;
        for (const block of blocks) this.#take(block);
        this.#wake();
      });
      response.on("error", () => {});
    });
    sent.on("error", () => {});
    sent.end();
    this.#close = () => sent.destroy();
  }

  #take(block: string): void {
    const field = (name: string) => new RegExp(`^${name}: (.*)$`, "m").exec(block)?.[1] ?? "";
    if (field("event") !== "")
      this.heard.push({ id: field("id"), event: field("event"), data: JSON.parse(field("data")) });
  }

  /** The first event from the `from`th on that fits; waits for it. */
  async until(fits: (heard: Heard) => boolean, from = 0): Promise<Heard> {
    for (;;) {
      const found = this.heard.slice(from).find(fits);
      if (found !== undefined) return found;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  close(): void {
    this.#close();
  }
}
