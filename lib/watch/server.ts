// The server of the page: on this machine alone, for who knows the address with its token.

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { resolve } from "node:path";
import { ConfigError, IoError } from "../errors.js";
import { type Asset, readAssets } from "./assets.js";
import { Hub, type Message } from "./hub.js";
import { importMap, pageHtml } from "./page_html.js";

const HOST = "127.0.0.1";

/** Pages that may listen at once. */
const MOST_LISTENERS = 32;
/** A listener who takes nothing is let go when so much waits for it: it comes back and gets what it missed. Bytes. */
const MOST_WAITING = 32 << 20;
/** Between signs of life to those who listen, when there is no news. Milliseconds. */
const ALIVE_INTERVAL = 15_000;

export interface WatchOptions {
  /** Run folders, or folders that hold them; they need not be there yet. */
  folders: readonly string[];
  /** 0, the default, takes a free one. */
  port?: number;
}

const importMapHash = createHash("sha256").update(importMap).digest("base64");

/** For every answer. Scripts, styles and connections are this server's own, and no other page may show this one. */
const headers = {
  "Content-Security-Policy":
    `default-src 'none'; script-src 'self' 'sha256-${importMapHash}'; style-src 'self'; connect-src 'self'; ` +
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  "Cache-Control": "no-store",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
};

/**
 * Whether a Host header names this machine. The port may be another one: that of an ssh tunnel's near end. Any other
 * name is refused: a page elsewhere could have its own name resolved to 127.0.0.1 and read what this server says.
 */
export function isLoopback(host: string | undefined): boolean {
  return /^(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?$/i.test(host ?? "");
}

function same(a: string, b: string): boolean {
  const [left, right] = [a, b].map((text) => createHash("sha256").update(text).digest()) as [Buffer, Buffer];
  return timingSafeEqual(left, right);
}

/** A request that is not answered as asked. */
class Refusal extends Error {
  constructor(
    readonly status: number,
    why: string,
  ) {
    super(why);
  }
}

/** The page's server. It reads run folders and writes nothing. */
export class WatchServer {
  readonly hub: Hub;
  readonly #token = randomBytes(24).toString("base64url");
  readonly #assets: Map<string, Asset>;
  readonly #server: Server;
  readonly #streams = new Set<ServerResponse>();

  private constructor(folders: readonly string[]) {
    this.hub = new Hub(folders.map((folder) => resolve(folder)));
    this.#assets = readAssets();
    this.#server = createServer((request, response) => {
      try {
        this.#answer(request, response);
      } catch (error) {
        if (error instanceof Refusal) refuse(response, error.status, error.message);
        else refuse(response, 500, `the page could not be made: ${(error as Error).message}`);
      }
    });
  }

  /** Listens on 127.0.0.1. Throws ConfigError where the port is taken, IoError where files of the page are missing. */
  static async open({ folders, port = 0 }: WatchOptions): Promise<WatchServer> {
    const watch = new WatchServer(folders);
    const server = watch.#server;
    await new Promise<void>((done, fail) => {
      server.once("error", (error: NodeJS.ErrnoException) => fail(portError(port, error)));
      server.listen(port, HOST, done);
    });
    return watch;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** The address of the page, with its token: who has it can see the runs. */
  get url(): string {
    return `http://${HOST}:${this.port}/${this.#token}/`;
  }

  async close(): Promise<void> {
    this.hub.close();
    for (const stream of this.#streams) stream.end();
    await new Promise((done) => {
      this.#server.close(done);
      this.#server.closeAllConnections();
    });
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    if (!isLoopback(request.headers.host))
      throw new Refusal(403, "this server answers to localhost and 127.0.0.1 alone");
    if (request.method !== "GET" && request.method !== "HEAD") {
      response.setHeader("Allow", "GET, HEAD");
      throw new Refusal(405, "there is nothing here to change");
    }
    // As it was sent: nothing is decoded and no path is looked up in a folder, so none leads out of one.
    const path = (request.url ?? "").split("?")[0] as string;
    const [, token = "", ...rest] = path.split("/");
    if (!same(token, this.#token))
      throw new Refusal(403, "the address is not complete: use the one that longseq watch printed, with its token");
    if (rest.length === 0) {
      response.writeHead(308, { ...headers, Location: `/${token}/` }).end();
      return;
    }
    const name = rest.join("/");
    if (name === "events") {
      this.#stream(request, response);
      return;
    }
    const asset: Asset | undefined =
      name === "" ? { type: "text/html; charset=utf-8", body: Buffer.from(pageHtml) } : this.#assets.get(name);
    if (asset === undefined) throw new Refusal(404, "there is no such file");
    response.writeHead(200, { ...headers, "Content-Type": asset.type, "Content-Length": asset.body.length });
    response.end(request.method === "HEAD" ? undefined : asset.body);
  }

  /** Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html */
  #stream(request: IncomingMessage, response: ServerResponse): void {
    if (this.#streams.size >= MOST_LISTENERS)
      throw new Refusal(503, `${MOST_LISTENERS} pages listen already; close one of them`);
    response.writeHead(200, { ...headers, "Content-Type": "text/event-stream; charset=utf-8" });
    if (request.method === "HEAD") {
      response.end();
      return;
    }
    this.#streams.add(response);
    response.write("retry: 1000\n\n");
    // All that is known, which comes first, may be more; it is there already.
    let most = Number.POSITIVE_INFINITY;
    const send = ({ id, event, data }: Message): void => {
      response.write(`id: ${id}\nevent: ${event}\ndata: ${data}\n\n`);
      if (response.writableLength > most) response.destroy();
    };
    const alive = setInterval(() => response.write(":\n\n"), ALIVE_INTERVAL);
    const last = request.headers["last-event-id"];
    const end = this.hub.listen(send, typeof last === "string" ? last : undefined);
    most = response.writableLength + MOST_WAITING;
    response.on("error", () => {});
    response.on("close", () => {
      clearInterval(alive);
      end();
      this.#streams.delete(response);
    });
  }
}

function refuse(response: ServerResponse, status: number, why: string): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  response.writeHead(status, { ...headers, "Content-Type": "text/plain; charset=utf-8" }).end(`${why}\n`);
}

function portError(port: number, error: NodeJS.ErrnoException): Error {
  if (error.code === "EADDRINUSE")
    return new ConfigError(
      `--port: ${port} is taken by another program; give another one, or leave it out to get a free one`,
      { port },
    );
  if (error.code === "EACCES")
    return new ConfigError(`--port: ${port} may not be opened by this user; give one from 1024 on`, { port });
  return new IoError(`${HOST}:${port}: cannot be listened on (${error.code ?? error.message})`, { port });
}
