// A headless Chromium for tests, and pages that keep what the browser complains of.

import { type Browser, chromium, type Page } from "playwright-core";

export const openChromium = (executablePath: string): Promise<Browser> =>
  chromium.launch({
    executablePath,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"],
  });

/** A page of this width that notes errors, refusals of its security policy, and every address that it asks for. */
export async function openPage(
  browser: Browser,
  width: number,
): Promise<{ page: Page; complaints: string[]; asked: string[] }> {
  const context = await browser.newContext({ viewport: { width, height: 900 } });
  const page = await context.newPage();
  const complaints: string[] = [];
  const asked: string[] = [];
  page.on("console", (message) => {
    // A server that has gone is told by the browser too.
    if (!message.text().includes("ERR_CONNECTION_REFUSED")) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => asked.push(request.url()));
  return { page, complaints, asked };
}
