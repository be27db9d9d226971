"""JupyterLab in a real browser, on a copy of the project, in an empty home: `make test-lab`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest

from tools.chapters import ROOT, Chapter, chapters, code_cells, count_equations, figures, markdown
from tools.execute import EXPECTED
from tools.print_book import open_browser

pytestmark = pytest.mark.lab
CHAPTERS = chapters()
TOKEN = "lab-test"
BIN = Path(sys.prefix) / "bin"
NOT_COPIED = (".git", ".venv*", "_build", "build", "offline-kit*", ".*_cache", "__pycache__", ".ipynb_checkpoints")

#: Patience, in seconds: these bound a run that hangs, and are no measure of speed.
TO_START, TO_OPEN, TO_RUN = 180, 180, 1200

#: The longest output that a cell may show. A progress bar that starts a new line at every step passes it in one epoch.
MOST_LINES, MOST_LETTERS = 60, 4_000

FACTS = """() => {
    const all = (selector) => [...document.querySelectorAll(`.jp-Notebook ${selector}`)];
    const [page, panel] = [document.documentElement, document.querySelector(".jp-WindowedPanel-outer")];
    return {
        cells: all(".jp-Cell").length,
        prompts: all(".jp-CodeCell .jp-InputPrompt").map((prompt) => prompt.textContent),
        errors: all("[data-mime-type='application/vnd.jupyter.error']").map((output) => output.textContent),
        warnings: all("[data-mime-type='application/vnd.jupyter.stderr']").map((output) => output.textContent),
        figures: all(".jp-OutputArea-output img").filter((image) => image.naturalWidth).length,
        outputs: all(".jp-CodeCell .jp-OutputArea").map((area) => area.textContent),
        equations: [all("mjx-container[display='true']").length, all("mjx-container:not([display])").length],
        broken: all("mjx-merror, [data-mml-node='merror'], mjx-mtext[style*='red']").map((box) => box.textContent),
        tooWide: [page.scrollWidth - innerWidth, panel.scrollWidth - panel.clientWidth],
    };
}"""
HAS_RUN = """() => {
    const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map((prompt) => prompt.textContent);
    return !prompts.some((prompt) => prompt.includes("*")) && prompts[0].includes("1");
}"""


@contextmanager
def start(tmp_path, *command):
    """Copy the project, run `command` there, and yield (the server's address, the copy)."""
    copy, home = tmp_path / "copy", tmp_path / "home"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*NOT_COPIED))
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dropped = ("JUPYTER", "IPYTHON", "XDG_", "MAKE", "MFLAGS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    environment |= {"HOME": str(home), "JUPYTER_TOKEN": TOKEN, "VAE_UTILS_QUICK": "1", "PYTHONPATH": str(copy)}
    options = f"--no-browser --port {port} --ServerApp.port_retries=0"
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [argument.replace("OPTIONS", options) for argument in command],
            cwd=copy,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(address) or server.poll() is not None, TO_START)
        assert server.poll() is None, (tmp_path / "log").read_text("utf-8")
        yield address, copy
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # and with Lab its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def wait_for(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.5)
    return found


def ask(address, path, method="GET", content=None):
    data = None if content is None else json.dumps(content).encode()
    headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=TO_OPEN) as reply:
        return json.loads(reply.read() or "null")


def answers(address):
    try:
        return ask(address, "/api/status")
    except OSError:
        return None


def make_lab(tmp_path):
    """Start what `make lab` starts, in the environment that runs the tests: `-o` leaves it as it is."""
    return start(tmp_path, "make", "-o", "venv", "lab", f"VENV={sys.prefix}", "ARGS=OPTIONS")


def author_lab(tmp_path):
    """Start Lab as someone does who edits chapters: at the repository's root, where .py and .ipynb are paired."""
    as_root = " --allow-root" if os.getuid() == 0 else ""
    return start(tmp_path, "sh", "-c", f"exec '{BIN}/jupyter' lab OPTIONS{as_root}")


@pytest.fixture(scope="module")
def browser():
    with open_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def learner(tmp_path_factory):
    with make_lab(tmp_path_factory.mktemp("learner")) as lab:
        yield lab


@pytest.fixture(scope="module")
def author(tmp_path_factory):
    with author_lab(tmp_path_factory.mktemp("author")) as lab:
        yield lab


@contextmanager
def opened(browser, address, path):
    """Open a notebook with its kernel; shut the kernel down in the end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.asked = set()
    page.on("request", lambda request: page.asked.add(request.url))
    page.goto(f"{address}/lab/tree/{path}?token={TOKEN}&reset")  # without the tabs of the last test
    wait_until_open(page)
    yield page
    page.close()
    for session in ask(address, "/api/sessions"):
        ask(address, f"/api/sessions/{session['id']}", "DELETE")


def wait_until_open(page):
    """Wait for the kernel, too: Lab loses its connection when a kernel is restarted before it is ready."""
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=TO_OPEN * 1000)
    for _ in range(2):  # and it stays ready
        page.get_by_text("(ipykernel) | Idle").wait_for(timeout=TO_OPEN * 1000)
        page.wait_for_timeout(1000)


def run_all(page):
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Restart Kernel and Run All Cells").click()
    page.locator(".jp-Dialog-button.jp-mod-accept").click()
    page.wait_for_function("document.querySelector('.jp-Notebook').textContent.includes('[*]')", timeout=TO_OPEN * 1000)
    page.wait_for_function(HAS_RUN, timeout=TO_RUN * 1000)
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=TO_OPEN * 1000)


def too_long(text):
    return len(text) > MOST_LETTERS or text.count("\n") >= MOST_LINES


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_a_chapter_runs_in_lab(browser, learner, chapter):
    address, copy = learner
    theirs, committed = in_copy(copy, chapter), chapter.read()
    with opened(browser, address, theirs.path.name) as page:
        run_all(page)
        facts = page.evaluate(FACTS)
        assert not facts["errors"]
        assert not [text for text in facts["warnings"] if not EXPECTED.search(text)]
        assert facts["prompts"] == [f"[{number}]:" for number in range(1, len(code_cells(committed)) + 1)]
        assert facts["cells"] == len(committed.cells), "Lab shows only some of the cells: read them in another way"
        assert facts["figures"] == len(figures(committed))
        assert tuple(facts["equations"]) == count_equations(markdown(committed)) and not facts["broken"]
        assert any(facts["outputs"]) and not [text for text in facts["outputs"] if too_long(text)]
        assert max(facts["tooWide"]) <= 0
        elsewhere = {url for url in page.asked if not url.startswith((address, "data:", "blob:"))}
        assert elsewhere <= {"https://colab.research.google.com/assets/colab-badge.svg"}
        save(page, theirs.path)
    assert sources(theirs.read()) == sources(committed)
    for each in CHAPTERS:
        assert in_copy(copy, each).source.read_bytes() == each.source.read_bytes(), "a learner's run changes no .py"


def in_copy(copy, chapter):
    return Chapter(chapter.name, copy / "notebooks")


def sources(notebook):
    return [cell.source for cell in notebook.cells]


def save(page, path):
    before = path.stat().st_mtime_ns
    page.keyboard.press("Control+s")
    wait_for(lambda: path.stat().st_mtime_ns > before, 60)


def type_into_code_cell(page, number, text):
    page.locator(".jp-Notebook .jp-CodeCell .cm-content").nth(number).click()
    page.keyboard.press("Control+End")
    page.keyboard.type("\n" + text)


def test_a_learners_edit_stays_in_the_notebook(browser, tmp_path):
    with make_lab(tmp_path) as (address, copy):
        chapter = in_copy(copy, CHAPTERS[0])
        before = chapter.source.read_bytes()
        with opened(browser, address, chapter.path.name) as page:
            type_into_code_cell(page, 1, "my_own_note = 1")
            save(page, chapter.path)
    assert "my_own_note = 1" in chapter.path.read_text("utf-8")
    assert chapter.source.read_bytes() == before


@pytest.mark.parametrize("chapter", CHAPTERS, ids=str)
def test_saving_what_was_not_changed_leaves_the_py_as_it_is(author, chapter):
    """What Lab sends when it saves, for every chapter; the next test saves in the browser."""
    address, copy = author
    chapter = in_copy(copy, chapter)
    before, content = chapter.source.read_bytes(), ask(address, f"/api/contents/notebooks/{chapter}.ipynb")
    saved = chapter.source.stat().st_mtime_ns
    ask(address, f"/api/contents/notebooks/{chapter}.ipynb", "PUT", content)
    assert chapter.source.stat().st_mtime_ns > saved and chapter.source.read_bytes() == before


def test_an_authors_pair_stays_one(browser, author):
    address, copy = author
    chapter = in_copy(copy, CHAPTERS[0])
    notebook, source = chapter.path, chapter.source
    before, pictures = source.read_bytes(), len(figures(chapter.read()))
    with opened(browser, address, f"notebooks/{chapter}.ipynb") as page:
        save(page, source)
        assert source.read_bytes() == before, "nothing was changed"
        assert "written in the .py" not in page.locator(".jp-Notebook").text_content()
        text = source.read_text("utf-8")
        edited = text.replace("\n# %% [markdown]\n# # ", "\n# %% [markdown]\n# # Written in the .py: ", 1)
        assert edited != text
        source.write_text(edited, "utf-8")
        page.reload()
        wait_until_open(page)
        assert "Written in the .py: " in page.locator(".jp-Notebook h1").first.text_content()
        wait_for(lambda: page.evaluate(FACTS)["figures"] == pictures, 60)  # outputs stay

        type_into_code_cell(page, 1, "# written in Lab")
        save(page, source)
        saved = source.read_text("utf-8")
    assert saved.replace("\n# written in Lab", "", 1) == edited
    assert "# written in Lab" in notebook.read_text("utf-8")


def test_an_edit_of_the_ipynb_alone_is_not_thrown_away(author):
    """What a learner wrote into the .ipynb is newer than the .py: at the root, Lab refuses to open one of the two."""
    address, copy = author
    chapter = in_copy(copy, CHAPTERS[1])
    old = chapter.source.stat().st_mtime - 1000
    os.utime(chapter.source, (old, old))
    path = f"/api/contents/notebooks/{chapter}.ipynb"
    mine = chapter.read()
    assert len(ask(address, path)["content"]["cells"]) == len(mine.cells), "the same text, whichever is newer"

    mine.cells[0].source += "\n\nMy own words."
    nbformat.write(mine, chapter.path)
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(address, path)
    assert "is more recent than" in json.loads(refusal.value.read())["message"]


def test_what_would_flood_a_page_is_found():
    bar = "".join(f"{k}/469 ━━━━━━━━━━ 0s 5ms/step - loss: {200 - k / 10}\n" for k in range(469))
    assert too_long(bar) and too_long(bar.replace("\n", "\r")) and not too_long("\n".join(bar.splitlines()[:50]))
