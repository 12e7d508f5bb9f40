// Open a page in headless Chromium, give it image files, and print what it shows as JSON; tests/test_web.py runs this.

import puppeteer from "puppeteer-core";

const [url, executablePath, ...images] = process.argv.slice(2);
// What the page asks of another server fails, and says so on the console; a worker's requests are not listed below.
const elsewhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1";
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox", elsewhere] });
try {
  const page = await browser.newPage();
  page.setDefaultTimeout(240_000);
  const [messages, requests] = [[], []];
  page.on("console", (message) => messages.push(`${message.type()}: ${message.text()}`));
  page.on("pageerror", (error) => messages.push(`error: ${error.message}`));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.waitForFunction(() => !/Loading/.test(document.getElementById("status").textContent));
  const status = await page.$eval("#status", (element) => element.textContent);
  if (images.length > 0) {
    const input = await page.$("#files");
    await input.uploadFile(...images);
    const done = "#results > [data-label], #results > [data-failure]";
    await page.waitForFunction((all, count) => document.querySelectorAll(all).length === count, {}, done, images.length);
  }
  const shown = await page.$$eval("#results > li", (items) => items.map((item) => ({ ...item.dataset })));
  console.log(JSON.stringify({ status, shown, messages, requests }));
} finally {
  await browser.close();
}
