"""A count of the cases that each file has tried, for the book's page of promises, and the same cases in every run."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

TRIED = Counter()

#: Written when `make robustness` has run the whole of it, and nothing failed or was left out.
RECORD = Path(__file__).with_name("cases.json")

# The same cases in every run, and no folder of past ones: a failure repeats for whoever sees it.
settings.register_profile("robustness", derandomize=True, deadline=None, database=None)
settings.load_profile("robustness")


@pytest.fixture(scope="module")
def tried(request):
    """Count cases under the name of the test's file."""

    def count(n=1):
        TRIED[request.path.name] += n

    return count


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    TRIED.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_terminal_summary(terminalreporter, config):
    for file, cases in sorted(TRIED.items()):
        terminalreporter.write_line(f"{file}: {cases:,} cases tried")
    fell_out = any(terminalreporter.stats.get(outcome) for outcome in ("failed", "error", "skipped"))
    if TRIED and config.args == ["tests/robustness"] and not config.option.keyword and not fell_out:
        RECORD.write_text(json.dumps(dict(sorted(TRIED.items())), indent=2) + "\n", "utf-8")
