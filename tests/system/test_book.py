"""The built book in a real browser: `make book`, then `pytest -m book`."""

import functools
import gzip
import re
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

from tools.chapters import (
    ROOT,
    chapters,
    code_cells,
    count_equations,
    equation_numbers,
    figure_name,
    markdown,
    without_code,
)
from tools.print_book import HTML, lay_out, open_browser, print_page
from tools.set_slug import current_slug

pytestmark = pytest.mark.book
CHAPTERS = chapters()
FRONT_AND_BACK = sorted(path.stem for path in (ROOT / "book").glob("*.md"))
PAGES = [*(f"book/{name}.html" for name in FRONT_AND_BACK), *(f"notebooks/{chapter}.html" for chapter in CHAPTERS)]
OTHER_PAGES = ["search.html"]
every_chapter = pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
VIEWS = [(width, theme) for width in (360, 1280) for theme in ("light", "dark")]
VIEW_NAMES = [f"{width}-{theme}" for width, theme in VIEWS]

#: Faults of the theme or of Sphinx that axe-core reports, and why we leave them.
KNOWN_FAULTS = {
    "region": "the theme's side bar keeps the book's title outside its landmarks",
    "aria-allowed-role": "docutils gives each entry of a bibliography a role for books",
    "aria-deprecated-role": "the same role, deprecated since docutils chose it",
    "aria-required-children": "docutils puts links beside the entries of a bibliography's list",
}
#: Equations are left out: their inside is MathJax' own, thousands of elements, hidden from readers of MathML.
AXE_CONTEXT = {"exclude": [["mjx-container"]]}

SETTLE = """async () => {
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    for (const change of document.getAnimations()) change.finish(); // colours fade in, and would be measured halfway
}"""
LOAD_PICTURES = """async () => {
    for (const picture of document.images) picture.loading = "eager";
    await Promise.all([...document.images].map((picture) => picture.decode().catch(() => {})));
    return [...document.images]
        .filter((picture) => !picture.naturalWidth || picture.alt.length < 10)
        .map((picture) => `${picture.src}: ${picture.alt}`);
}"""


@pytest.fixture(scope="module", autouse=True)
def built():
    """Without a book, no test here says anything."""
    assert (HTML / "book" / "index.html").exists(), "run `make book` first"


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=HTML))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(params=["file", "server"])
def base(request):
    return HTML.as_uri() if request.param == "file" else request.getfixturevalue("server")


def new_page(browser, base, width=1280, theme="light", **options):
    """Open a page that keeps account of what goes wrong in `page.faults`."""
    height = 740 if width < 500 else 900
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme, **options)
    page.faults = []
    page.on("request", lambda r: r.url.startswith((base, "data:")) or page.faults.append(f"asks for {r.url}"))
    page.on("requestfailed", lambda r: page.faults.append(f"{r.url} failed"))
    page.on("response", lambda r: r.status < 400 or page.faults.append(f"{r.url}: {r.status}"))
    page.on("console", lambda m: m.type in ("error", "warning") and page.faults.append(f"console: {m.text}"))
    page.on("pageerror", lambda e: page.faults.append(f"error: {e}"))
    return page


def go(page, address):
    page.goto(address)
    page.evaluate(SETTLE)


def source_text(page):
    """Return the Markdown behind a page, the captions of its figures included, its code left out."""
    if page.startswith("book/"):
        return without_code((ROOT / page).with_suffix(".md").read_text("utf-8"))
    notebook = nbformat.read((ROOT / page).with_suffix(".ipynb"), as_version=4)
    captions = [cell.metadata.get("mystnb", {}).get("figure", {}).get("caption", "") for cell in notebook.cells]
    return without_code("\n\n".join([markdown(notebook), *captions]))


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_every_page_is_whole(browser, base, view):
    page = new_page(browser, base, *view)
    faults = {}
    for path in PAGES + OTHER_PAGES:
        page.faults.clear()
        go(page, f"{base}/{path}")
        found = page.faults
        found += [f"picture {picture}" for picture in page.evaluate(LOAD_PICTURES)]
        scroll, width = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        if scroll > width:
            found.append(f"{scroll} pixels wide, of {width}")
        if page.locator("html").get_attribute("data-theme") != view[1]:
            found.append("wrong theme")
        errors = page.locator("mjx-merror, mjx-mtext[style*='color: red']").all_text_contents()
        found += [f"MathJax: {text}" for text in errors]
        if path in PAGES:
            wanted = count_equations(source_text(path))
            rendered = tuple(page.locator(f"{box} > mjx-container").count() for box in ("div.math", "span.math"))
            if rendered != wanted:
                found.append(f"{rendered} equations of {wanted}")
        if found:
            faults[path] = list(found)
    page.close()
    assert not faults


@every_chapter
def test_wide_equations_scroll_alone_and_from_their_beginning(browser, server, chapter):
    page = new_page(browser, server, 360)
    go(page, f"{server}/notebooks/{chapter}.html")
    lost = page.evaluate(
        """() => [...document.querySelectorAll(".math")].filter((box) => {
            const [outer, inner] = [box, box.firstElementChild].map((element) => element.getBoundingClientRect());
            const wide = inner.right > outer.right + 1;
            return inner.left < outer.left - 1 || outer.right > innerWidth
                || (wide && getComputedStyle(box).overflowX !== "auto");
        }).map((box) => box.id || box.textContent)"""
    )
    page.close()
    assert not lost


@pytest.mark.parametrize("view", VIEWS, ids=VIEW_NAMES)
def test_axe_finds_nothing(browser, server, view):
    page = new_page(browser, server, *view)
    faults = {}
    for path in PAGES + OTHER_PAGES:
        go(page, f"{server}/{path}")
        found = Axe().run(page, AXE_CONTEXT).response["violations"]
        found = {
            fault["id"]: [node["html"][:200] for node in fault["nodes"]]
            for fault in found
            if fault["id"] not in KNOWN_FAULTS
        }
        if found:
            faults[path] = found
    page.close()
    assert not faults


@pytest.fixture(scope="module")
def links(browser, server):
    """Return {page: (its ids, its links)}."""
    page = new_page(browser, server)
    found = {}
    for path in PAGES + OTHER_PAGES:
        page.goto(f"{server}/{path}")
        found[path] = page.evaluate(
            """() => [[...document.querySelectorAll("[id]")].map((element) => element.id),
                      [...document.querySelectorAll("a[href]")].map((link) => link.getAttribute("href"))]"""
        )
    page.close()
    return found


def test_links_resolve(links):
    faults = []
    for path, (_, hrefs) in links.items():
        for href in set(hrefs):
            parts = urlsplit(href)
            if parts.scheme:
                if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc):
                    faults.append(f"{path}: {href} is no address")
                continue
            target = ((HTML / path).parent / unquote(parts.path)).resolve() if parts.path else HTML / path
            name = target.relative_to(HTML).as_posix()
            if not target.is_file():
                faults.append(f"{path}: no file for {href}")
            elif parts.fragment and name in links and unquote(parts.fragment) not in links[name][0]:
                faults.append(f"{path}: no place for {href}")
    assert not faults


@every_chapter
def test_a_chapter_opens_elsewhere(links, chapter):
    hrefs = links[f"notebooks/{chapter}.html"][1]
    notebook = f"{current_slug()}/blob/main/notebooks/{chapter}.ipynb"
    assert [href for href in hrefs if "colab.research" in href] == [
        f"https://colab.research.google.com/github/{notebook}"
    ]
    assert [href for href in hrefs if "kaggle.com" in href] == [
        f"https://kaggle.com/kernels/welcome?src=https://github.com/{notebook}"
    ]
    download = next(href for href in hrefs if "_sources/" in href)
    assert (HTML / "notebooks" / download).resolve().read_bytes() == chapter.path.read_bytes()


@every_chapter
def test_equations_can_be_linked_to(links, chapter):
    ids, hrefs = links[f"notebooks/{chapter}.html"]
    text = source_text(f"notebooks/{chapter}.ipynb")
    for number in equation_numbers(text):
        assert f"eq-{number.replace('.', '-')}" in ids
    mentioned = re.search(rf"\(({int(chapter.number)}\.\d+)\)", re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL))
    assert f"#eq-{mentioned[1].replace('.', '-')}" in [href[href.find("#") :] for href in hrefs]


@every_chapter
def test_figures_are_numbered_with_caption(browser, server, chapter):
    page = new_page(browser, server)
    go(page, f"{server}/notebooks/{chapter}.html")
    numbers = page.locator("figcaption .caption-number").all_text_contents()
    figures = [cell for cell in chapter.read().cells if figure_name(cell)]
    expected = [f"Figure {int(chapter.number)}.{k + 1}" for k in range(len(figures))]
    assert [number.strip() for number in numbers] == expected
    page.close()


@pytest.mark.parametrize("term", ["posterior collapse", "reparameterization"])
def test_search_finds(browser, base, term):
    page = new_page(browser, base)
    page.goto(f"{base}/search.html?q={term.replace(' ', '+')}")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.wait_for_timeout(500)  # excerpts are fetched after the titles
    found = page.locator("#search-results li a").evaluate_all("links => links.map((link) => link.href)")
    assert any("glossary" in href for href in found)
    assert any("/notebooks/" in href for href in found)
    assert not page.faults
    page.close()


def test_search_starts_from_the_keyboard(browser, base):
    page = new_page(browser, base)
    go(page, f"{base}/book/index.html")
    page.keyboard.press("Control+k")
    page.keyboard.type("manifold")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.close()


@every_chapter
def test_a_solution_opens_with_the_keyboard(browser, server, chapter):
    page = new_page(browser, server)
    go(page, f"{server}/notebooks/{chapter}.html#exercises")
    solution = page.locator("details").first
    assert not solution.locator("pre").first.is_visible()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") == "SUMMARY":
            break
    page.keyboard.press("Enter")
    assert solution.locator("pre").first.is_visible()
    page.close()


def test_code_can_be_copied(browser, server):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    go(page, f"{server}/notebooks/{CHAPTERS[-1]}.html")
    cell = page.locator("div.cell_input").nth(1)
    cell.hover()
    cell.locator("button.copybtn").click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).length > 0")
    code = code_cells(CHAPTERS[-1].read())[1].source
    assert page.evaluate("navigator.clipboard.readText()").strip() == code.strip()
    context.close()


PIXELS = "canvas => canvas.toDataURL()"


def test_the_first_figure_answers_mouse_and_keyboard(browser, server):
    page = new_page(browser, server)
    go(page, f"{server}/book/index.html")
    canvas, sliders = page.locator(".explorer canvas"), page.locator(".explorer input")
    page.wait_for_function("document.querySelector('.explorer canvas').ariaLabel")
    before = canvas.evaluate(PIXELS)
    box = page.locator(".plane").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9, steps=4)
    page.mouse.up()
    after = canvas.evaluate(PIXELS)
    assert after != before
    z0, z1 = (float(slider.input_value()) for slider in sliders.all())
    assert z0 > 1.5 and z1 < -1.5
    sliders.first.focus()
    page.keyboard.press("ArrowLeft")
    assert float(sliders.first.input_value()) < z0 and canvas.evaluate(PIXELS) != after
    assert f"z₀ = {float(sliders.first.input_value()):.2f}" in canvas.get_attribute("aria-label")
    page.close()


def test_the_first_figure_answers_a_finger(browser, server):
    page = new_page(browser, server, 360, has_touch=True)
    go(page, f"{server}/book/index.html")
    page.locator(".plane").scroll_into_view_if_needed()
    box = page.locator(".plane").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.1, box["y"] + box["height"] * 0.1)
    z0, z1 = (float(slider.input_value()) for slider in page.locator(".explorer input").all())
    assert z0 < -1.5 and z1 > 1.5
    page.close()


def test_the_first_figure_shows_without_a_script(browser, server):
    page = new_page(browser, server, java_script_enabled=False)
    page.goto(f"{server}/book/index.html")
    assert page.locator(".explorer img").is_visible()
    assert page.locator(".explorer canvas").count() == 0
    page.close()


def test_buttons_show_their_icons(browser, server):
    page = new_page(browser, server, 360)
    go(page, f"{server}/{PAGES[-1]}")
    blank = page.evaluate(
        """() => [...document.querySelectorAll("[class*='fa-solid'], .fab")]
            .filter((icon) => icon.offsetWidth && !/^"./.test(getComputedStyle(icon, "::before").content))
            .map((icon) => icon.className)"""
    )
    page.close()
    assert not blank


def test_weight():
    """The whole book is under 15 MB; a page's first view, sent as GitHub Pages sends it, under 1.5 MB (below)."""
    assert sum(path.stat().st_size for path in HTML.rglob("*") if path.is_file()) < 15e6


@pytest.mark.parametrize("path", PAGES)
def test_first_view_is_light(browser, server, path):
    page = new_page(browser, server)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    go(page, f"{server}/{path}")
    size = 0
    for url in set(asked):
        if url.startswith(server):
            data = (HTML / unquote(urlsplit(url).path).lstrip("/")).read_bytes()
            size += len(gzip.compress(data)) if url.split("?")[0].endswith((".html", ".js", ".css")) else len(data)
    page.close()
    assert size < 1.5e6


@every_chapter
def test_a_chapter_prints(browser, tmp_path, chapter):
    page = lay_out(browser, HTML / "notebooks" / f"{chapter}.html")
    clipped = page.evaluate(
        """() => [...document.querySelectorAll(".math, figure img, div.highlight pre")]
            .filter((box) => {
                const area = document.querySelector("article").getBoundingClientRect();
                const parts = [box, ...box.querySelectorAll("mjx-container, mjx-mtable, mjx-mtd")];
                const rects = parts.map((part) => part.getBoundingClientRect());
                return box.tagName === "PRE" && box.scrollWidth > box.clientWidth + 1
                    || rects.some((rect) => rect.left < area.left - 1 || rect.right > area.right + 1);
            })
            .map((box) => box.id || box.textContent.slice(0, 80))"""
    )
    assert not clipped
    assert page.locator("details:not([open])").count() == 0
    for chrome in (".bd-sidebar-primary", ".bd-header-article", ".launch"):
        assert not page.locator(chrome).first.is_visible(), chrome
    print_page(page, tmp_path / "chapter.pdf")
    page.close()
    sheets = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "chapter.pdf").read_bytes()))
    words = len(source_text(f"notebooks/{chapter}.ipynb").split())
    assert words / 400 < sheets < words / 50


def test_further_reading_is_in_the_bibliography(links):
    cited = set(links["book/bibliography.html"][1])
    for chapter in CHAPTERS:
        text = source_text(f"notebooks/{chapter}.ipynb").split("## Further reading")[1]
        missing = [url for url in re.findall(r"\]\((https?://[^)\s]+)\)", text) if url not in cited]
        assert not missing, chapter


def test_social_card_and_favicon(browser, server):
    page = new_page(browser, server)
    page.goto(f"{server}/{PAGES[-1]}")
    card = page.locator("meta[property='og:image']").get_attribute("content")
    owner, name = current_slug().split("/")
    site = f"https://{owner.lower()}.github.io/{name}/"
    assert card.startswith(site)
    assert (HTML / card.removeprefix(site)).is_file()
    icon = page.locator("link[rel='icon'], link[rel='shortcut icon']").first.get_attribute("href")
    assert (HTML / "notebooks" / icon.split("?")[0]).resolve().is_file()
    assert len(page.locator("meta[property='og:description']").get_attribute("content")) > 40
    page.close()


def hub_faults(links, slug):
    """Say what would keep nbgitpuller from giving a learner each chapter of the repository `slug`."""
    folder = slug.split("/")[1]
    wanted = [
        {
            "repo": [f"https://github.com/{slug}"],
            "branch": ["main"],
            "urlpath": [f"lab/tree/{folder}/notebooks/{chapter}.ipynb"],
        }
        for chapter in CHAPTERS
    ]
    parts = [urlsplit(link) for link in links]
    faults = [] if [parse_qs(part.query, strict_parsing=True) for part in parts] == wanted else ["other parameters"]
    return faults + [part for part in parts if (part.scheme, part.path) != ("https", "/hub/user-redirect/git-pull")]


def test_links_for_a_hub_follow_the_slug(browser, server, tmp_path):
    page = new_page(browser, server)
    go(page, f"{server}/book/class.html")
    links = page.locator("pre", has_text="git-pull").text_content().split()
    page.close()
    assert not hub_faults(links, current_slug())
    assert hub_faults(links, "you/fork") and hub_faults(links[1:], current_slug())

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for name in ("pyproject.toml", "book/chapters.py", "book/class.md", "benchmarks", "tools", "notebooks"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copy(ROOT / name, tmp_path / name)
    subprocess.run(["git", "add", "."], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "tools/set_slug.py", "you/fork"], cwd=tmp_path, check=True)
    ask = "import sys; sys.path[:0] = ['.', 'book']; import chapters; print(chapters.hub_links())"
    printed = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert not hub_faults(re.findall(r"https://\S+", printed.stdout), "you/fork")
    text = (tmp_path / "book" / "class.md").read_text("utf-8")
    assert "git+https://github.com/{}@main".format("you/fork") in text and current_slug() not in text


def test_the_memory_table_is_that_of_the_notebooks(browser, server):
    page = new_page(browser, server)
    go(page, f"{server}/book/class.html")
    rows = [row.locator("td").all_text_contents() for row in page.locator("table tbody tr").all()]
    page.close()
    assert [row[0] for row in rows] == [chapter.number for chapter in CHAPTERS]
    for chapter, (_, peak, fits, learners) in zip(CHAPTERS, rows, strict=True):
        facts = chapter.read().metadata["vae_utils"]
        if "peak_memory_mb" not in facts:
            assert peak == "not recorded"
            continue
        megabytes = facts["peak_memory_mb"]
        assert int(peak.replace(",", "")) == megabytes
        assert fits == ("yes" if megabytes <= 2000 else "no")
        assert int(learners) * megabytes <= 24_000 < (int(learners) + 1) * megabytes
