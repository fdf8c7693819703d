"""Opens a page in headless Chromium and says what is wrong with it."""

import os
import shutil
from contextlib import contextmanager

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")

# Each text's contrast with what is painted behind it; the worst first.
LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
  const light = (color) => {
    const [r, g, b] = color.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    let behind = [255, 255, 255], opacity = 1;
    const chain = []; for (let e = element; e; e = e.parentElement) chain.unshift(e);
    for (const e of chain) {
      const style = getComputedStyle(e); behind = over(rgba(style.backgroundColor), behind); opacity *= style.opacity;
    }
    const color = rgba(getComputedStyle(element).color); color[3] *= opacity;
    const [a, b] = [light(over(color, behind)), light(behind)].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([ratio, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]).slice(0, 5);
}"""


def require_chromium():
    """Skip if there is no browser; fail in CI, where there must be one."""
    if CHROMIUM is None:
        assert not os.environ.get("CI"), "CI must install chromium"
        pytest.skip("no chromium is installed")


@contextmanager
def opened():
    """Start the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def shown(browser, url, width=1280, scheme="light", may_ask=()):
    """Open a page; at the end, fail if it said anything on the console or asked anybody for more than itself and `may_ask`."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    yield page
    page.close()
    assert said == []
    assert {one for one in asked if not one.startswith("data:")} == {url, *may_ask}


def looks_right(page, width):
    """Fail if a text is hard to read, or the page is wider than the window."""
    assert page.evaluate(LOW_CONTRAST) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
