"""Print each chapter of the built book to book/_build/pdf, solutions open. Usage: python -m tools.print_book"""

import os
import shutil
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

from tools.chapters import ROOT, chapters

BUILD = ROOT / "book" / "_build"
HTML = BUILD / "html"

MARGIN = 15  # mm, of an A4 page's 210
WIDTH = round((210 - 2 * MARGIN) / 25.4 * 96)

#: Paper doesn't scroll: open solutions, load every picture, and shrink what is too wide until it fits.
PREPARE = """async () => {
    document.querySelectorAll("details").forEach((box) => (box.open = true));
    const pictures = [...document.images];
    pictures.forEach((picture) => (picture.loading = "eager"));
    await Promise.all(pictures.map((picture) => picture.decode()));
    await window.MathJax?.startup.promise;
    const page = document.querySelector("article").getBoundingClientRect();
    for (const box of document.querySelectorAll(".math")) {
        const isWide = () => box.firstElementChild.getBoundingClientRect().right > page.right + 1;
        for (let size = 98; isWide() && size > 40; size -= 2) box.style.fontSize = `${size}%`;
    }
}"""


def find_browser():
    """Return the path of Chromium or Chrome: $BROWSER_PATH, or the first one on the PATH."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, names)), None)
    if not found:
        raise FileNotFoundError("No Chromium or Chrome found. Install one, or name it in BROWSER_PATH.")
    return found


@contextmanager
def open_browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        yield browser
        browser.close()


def lay_out(browser, path):
    """Open a page as it will stand on paper."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
    page.goto(path.as_uri())
    page.emulate_media(media="print")
    page.evaluate(PREPARE)
    return page


def print_page(page, path):
    margin = f"{MARGIN}mm"
    page.pdf(
        path=path,
        format="A4",
        margin=dict.fromkeys(("top", "right", "bottom", "left"), margin),
        display_header_footer=True,
        header_template="<span></span>",
        footer_template='<p style="font-size: 8px; margin: auto"><span class="pageNumber"></span></p>',
    )


def main():
    target = BUILD / "pdf"
    target.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for chapter in chapters():
            page = lay_out(browser, HTML / "notebooks" / f"{chapter}.html")
            print_page(page, target / f"{chapter}.pdf")
            page.close()
            print(target / f"{chapter}.pdf")


if __name__ == "__main__":
    main()
