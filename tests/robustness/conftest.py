"""A count of the cases that each group has tried, and the same cases in every run."""

from collections import Counter

import pytest
from hypothesis import settings

TRIED = Counter()

# The same cases in every run, and no folder of past ones: a failure repeats for whoever sees it.
settings.register_profile("robustness", derandomize=True, deadline=None, database=None)
settings.load_profile("robustness")


@pytest.fixture(scope="module")
def tried(request):
    """Count cases under the group that the test module's docstring names."""

    def count(n=1):
        TRIED[request.module.__doc__.split(":")[0]] += n

    return count


def pytest_terminal_summary(terminalreporter):
    for group, cases in TRIED.items():
        terminalreporter.write_line(f"{group}: {cases} cases tried")
