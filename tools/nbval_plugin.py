"""A pytest plugin for nbval runs, for what nbval leaves out.

It keeps what may differ out of the comparison; and when a notebook is through, it tries the notebook's exercises in
the kernel that still runs, and says how long the notebook took, in which mode and on which data.
"""

import json
import time

import pytest
from nbval.plugin import IPyNbFile

from tools.chapters import exercises
from tools.execute import PROVENANCE

MAY_DIFFER = ("stderr", "text/html", "image/svg+xml")

#: Runs in the kernel. An exercise's check must refuse the untouched stub and the wrong answer, and pass the solution.
TRY_EXERCISES = """
def _try(source, check, answer, number):
    scope = dict(globals())
    exec(source, scope)
    try:
        exec(check, scope)
        scope[f"check_{number}"](scope[answer])
    except AssertionError:
        return "refused"
    return "passed"

for _number, _answer, _check, _sources in __import__("json").loads(EXERCISES):
    _outcomes = [_try(_source, _check, _answer, _number) for _source in _sources]
    if _outcomes != ["refused", "refused", "passed"]:
        raise RuntimeError(f"exercise {_number}: stub, wrong answer and solution were {_outcomes}")
"""

_started = {}
_report = []


def pytest_collectstart(collector):
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += MAY_DIFFER


def pytest_runtest_setup(item):
    _started.setdefault(item.parent, time.time())


def pytest_runtest_teardown(item, nextitem):
    notebook = item.parent
    if nextitem is not None and nextitem.parent is notebook:
        return
    tried = [
        [e.number, e.answer, e.check, [f"{e.stub}\n{attempt}" for attempt in ("", e.wrong_answer, e.solution)]]
        for e in exercises(notebook.nb, notebook.name[:2])
    ]
    reply = ask(notebook, f"EXERCISES = {json.dumps(tried)!r}\n{TRY_EXERCISES}")
    if reply["status"] != "ok":
        raise AssertionError(f"{notebook.name}: {reply['evalue']}")
    answers = {name: answer["data"]["text/plain"] for name, answer in reply["user_expressions"].items()}
    seconds = time.time() - _started[notebook]
    _report.append(
        f"{notebook.name}: {seconds:.0f} s, mode {answers['mode']}, data {answers['dataset']}, "
        f"{len(tried)} exercises tried"
    )


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["report"] = _report


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _report.extend(getattr(node, "workeroutput", {}).get("report", []))


def pytest_terminal_summary(terminalreporter):
    for line in sorted(_report):
        terminalreporter.write_line(line)


def ask(notebook, code):
    reply = notebook.kernel.kc.execute(code, user_expressions=PROVENANCE, reply=True, timeout=600)
    return reply["content"]
