"""What the book needs beyond Sphinx: buttons, equations to link to, and numbers read from the notebooks."""

import json
import re
import textwrap
import tomllib
from pathlib import Path
from urllib.parse import urlencode

import imagesize
import nbformat
from docutils import nodes
from sphinx.errors import ConfigError

from benchmarks import table
from tools.chapters import ROOT, chapters, equation_numbers
from tools.set_slug import current_slug

CHAPTERS = {chapter.number: chapter for chapter in chapters()}
ICON_SCRIPT = "_static/scripts/fontawesome.js"


# Pages that are written from the notebooks, through {{ substitutions }}


def chapter_map():
    """Return a table of the chapters with the time that each takes."""
    rows = ["| no. | chapter | to read | to run |", "|---|---|---|---|"]
    total = 0
    for number, chapter in CHAPTERS.items():
        notebook = chapter.read()
        reading = int(re.search(r"\*\*Time\.\*\* (?:About )?(\d+) minutes to read", notebook.cells[0].source)[1])
        running = notebook.metadata["vae_utils"]["seconds"]
        total += reading
        link = f"[{title(notebook)}](../notebooks/{chapter.path.name})"
        rows.append(f"| {number} | {link} | {reading} min | {say_seconds(running)} |")
    return "\n".join([*rows, f"| | together | {total} min | |"])


def title(notebook):
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def say_seconds(seconds):
    return f"{seconds} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def number_tables():
    """Return a table for each group in numbers.toml, our numbers read from the notebooks' outputs."""
    groups = tomllib.loads((ROOT / "book" / "numbers.toml").read_text("utf-8"))
    return {f"numbers_{name}": number_table(rows) for name, rows in groups.items()}


def number_table(rows):
    lines = ["| model, set-up | published | here | label |", "|---|---|---|---|"]
    for row in rows:
        ours = "—"
        if "pattern" in row:
            chapter = CHAPTERS[row["chapter"]]
            link = f"[chapter {chapter.number}](../notebooks/{chapter.path.name})"
            ours = f"{find_output(chapter, row['pattern'])} ({link})"
            ours += f"; {row['differs']}" if "differs" in row else ""
        label = row["label"]
        if label not in ("reproduced", "scaled", "quoted") or (label == "quoted") != (ours == "—"):
            raise ConfigError(f"numbers.toml: {row['setup']} is labelled {label}")
        lines.append(f"| {row['setup']} | {row['published']} | {ours} | *{label}* |")
    return "\n".join(lines)


def find_output(chapter, pattern):
    """Return what the pattern's group matches in the printed outputs; it must match once."""
    cells = chapter.read().cells
    text = "\n".join(output.get("text", "") for cell in cells for output in cell.get("outputs", []))
    found = re.findall(pattern, text, re.MULTILINE)
    if len(found) != 1:
        raise ConfigError(f"numbers.toml: {pattern!r} matches {len(found)} times in {chapter}")
    return found[0]


BINDER_MB, HUB_MB = 2_000, 24_000


def memory_table():
    """Return a table of the memory that each chapter's kernel took in the run that made this book."""
    rows = [
        f"| no. | at most, in MB | fits into Binder's {BINDER_MB // 1000} GB | learners on {HUB_MB // 1000} GB |",
        "|---|---|---|---|",
    ]
    for number, chapter in CHAPTERS.items():
        peak = chapter.read().metadata["vae_utils"].get("peak_memory_mb")
        fits = "no" if peak and peak > BINDER_MB else "yes"
        facts = f"{peak:,} | {fits} | {HUB_MB // peak}" if peak else "not recorded | | "
        rows.append(f"| {number} | {facts} |")
    return "\n".join(rows)


def hub_link(name, slug, hub="https://hub.example.org"):
    """Return the link through which nbgitpuller gives a learner the repository, with a chapter open."""
    folder = slug.split("/")[1]
    query = {
        "repo": f"https://github.com/{slug}",
        "branch": "main",
        "urlpath": f"lab/tree/{folder}/notebooks/{name}.ipynb",
    }
    return f"{hub}/hub/user-redirect/git-pull?{urlencode(query)}"


def hub_links():
    links = [hub_link(chapter.name, current_slug()) for chapter in CHAPTERS.values()]
    return "```text\n" + "\n".join(links) + "\n```"


def cases_table():
    """Return a table of the robustness tests, with the cases that each tried when all of them ran."""
    folder = ROOT / "tests" / "robustness"
    record = folder / "cases.json"
    cases = json.loads(record.read_text("utf-8")) if record.exists() else {}
    rows = ["| file | cases |", "|---|---|"]
    for name in sorted(path.name for path in folder.glob("test_*.py")):
        if name != "test_classroom.py":  # which has a command of its own
            rows.append(f"| `{name}` | {cases[name]:,} |" if name in cases else f"| `{name}` | not recorded |")
    return "\n".join(rows)


def bibtex(version):
    slug = current_slug()
    lines = [
        "title  = {Variational autoencoders, every equation executed}",
        "author = {{The maintainers}}",
        "year   = {2026}",
        f"note   = {{Version {version}}}",
        f"url    = {{https://github.com/{slug}}}",
    ]
    return f"```bibtex\n@misc{{{slug.split('/')[0]},\n  " + ",\n  ".join(lines) + "\n}\n```"


def speed_tables():
    """Return the benchmarks' table, and what the settings of chapter 04's recipe do."""
    results, record = (
        json.loads((ROOT / "benchmarks" / f"{name}.json").read_text("utf-8")) for name in ("results", "ablation")
    )
    return {"speed_table": table.markdown(results), "recipe_table": table.recipes(record)}


def on_docstring(app, what, name, obj, options, lines):
    """Bring fenced code, which editors show as it is meant, into Sphinx' form."""
    text = re.sub(
        r"^( *)```(\w+)\n(.*?)^ *```$",
        lambda fence: f"{fence[1]}.. code-block:: {fence[2]}\n\n" + textwrap.indent(fence[3], "    "),
        "\n".join(lines),
        flags=re.DOTALL | re.MULTILINE,
    )
    lines[:] = text.split("\n")


# Chapters


def on_source_read(app, docname, source):
    """Leave out values such as `<Legend>` that a cell with a figure ends in: they would get its caption, too."""
    if docname.startswith("notebooks/"):
        notebook = nbformat.reads(source[0], as_version=4)
        for cell in notebook.cells:
            if "figure" in cell.metadata.get("mystnb", {}):
                cell.outputs = [output for output in cell.outputs if output.output_type != "execute_result"]
        source[0] = nbformat.writes(notebook)


def on_doctree_read(app, doctree):
    for math in doctree.findall(nodes.math_block):
        number_equation(app.env, math)
    if not app.env.docname.startswith("notebooks/"):
        return
    for link in list(doctree.findall(nodes.reference)):
        if link.get("refuri", "").startswith("https://colab.research.google.com/") and link.next_node(nodes.image):
            link.parent.replace_self(nodes.raw("", launch_buttons(app.env.docname, link["refuri"]), format="html"))
    for image in doctree.findall(nodes.image):
        # Sizes reserve the room, and pictures further down load when the reader comes near.
        width, height = imagesize.get(ROOT / image["uri"].lstrip("/"))
        image["width"], image["height"], image["loading"] = str(width), str(height), "lazy"


def number_equation(env, math):
    """Make a numbered equation something to link to, and let MathJax set its `\\tag`.

    Sphinx would wrap several lines in `split`, where `\\tag` is not allowed.
    """
    for number in equation_numbers(math.astext()):
        math["ids"].append(equation_id(number))
        env.numbered_equations = getattr(env, "numbered_equations", {}) | {number: env.docname}
    text = rf"\[{math.astext()}\]"
    math.children, math.rawsource, math["no-wrap"] = [], text, True
    math += nodes.Text(text)


def equation_id(number):
    return "eq-" + number.replace(".", "-")


def launch_buttons(docname, colab):
    path = colab.split("/github/")[1]
    kaggle = f"https://kaggle.com/kernels/welcome?src=https://github.com/{path}"
    return (
        '<p class="launch">'
        f'<a href="{colab}">Open in Colab</a> <a href="{kaggle}">Open in Kaggle</a> '
        f'<a href="../_sources/{docname}.ipynb" download>Download the notebook</a></p>'
    )


def on_doctree_resolved(app, doctree, docname):
    """Link `(2.3)` to its equation and `chapter 02` to its first page."""
    equations = getattr(app.env, "numbered_equations", {})
    for text in list(doctree.findall(nodes.Text)):
        if isinstance(text.parent, nodes.paragraph | nodes.emphasis | nodes.strong | nodes.caption | nodes.entry):
            parts = list(linked(app.builder, docname, text, equations))
            if len(parts) > 1:
                text.parent.replace(text, parts)


def linked(builder, docname, text, equations):
    for part in re.split(r"(\(\d+\.\d+\)|[Cc]hapters? \d\d\b)", text):
        target = None
        if part[1:-1] in equations:
            target = builder.get_relative_uri(docname, equations[part[1:-1]]) + "#" + equation_id(part[1:-1])
        elif part[-2:] in CHAPTERS and part[:7].lower() == "chapter":
            target = builder.get_relative_uri(docname, f"notebooks/{CHAPTERS[part[-2:]]}")
        yield nodes.reference("", part, refuri=target, internal=True) if target else nodes.Text(part)


# The theme


def on_build_finished(app, exception):
    """Leave out source maps, pictures that no page shows, and icons that the theme's style and font draw as well."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for name in ("manifold.png", "explorer.png"):  # the README's figure; and one that stands in _images already
        (static / name).unlink(missing_ok=True)
    for path in static.rglob("*.map"):
        path.unlink()
    for path in static.rglob("*.js"):
        text = path.read_text("utf-8")
        if "sourceMappingURL" in text[-200:]:
            path.write_text(text[: text.rindex("//# sourceMappingURL")], "utf-8")
    (Path(app.outdir) / ICON_SCRIPT).write_text("", "utf-8")


def on_config_inited(app, config):
    written = {"chapter_map": chapter_map(), "memory_table": memory_table(), "hub_links": hub_links()}
    written |= {"cases_table": cases_table(), "bibtex": bibtex(config.version)}
    config.myst_substitutions = written | number_tables() | speed_tables()


def setup(app):
    app.connect("config-inited", on_config_inited)
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("source-read", on_source_read)
    app.connect("doctree-read", on_doctree_read)
    app.connect("doctree-resolved", on_doctree_resolved)
    app.connect("build-finished", on_build_finished)
    return {"parallel_read_safe": False}
