"""A pytest plugin for nbval runs: say of each notebook how long it took, in which mode and on which data."""

import time

from tools.build_notebooks import PROVENANCE

_started = {}


def pytest_configure(config):
    # Neither may be compared: stderr holds TensorFlow's start-up log, the others are drawings.
    from nbval.plugin import IPyNbFile

    original = IPyNbFile.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        self.skip_compare = (*self.skip_compare, "stderr", "text/html", "image/svg+xml", "image/png")

    IPyNbFile.__init__ = init


def pytest_runtest_setup(item):
    _started.setdefault(item.parent, time.time())


def pytest_runtest_teardown(item, nextitem):
    if nextitem is not None and nextitem.parent is item.parent:
        return
    reply = item.parent.kernel.kc.execute("", user_expressions=PROVENANCE, reply=True, timeout=60)
    answers = reply["content"]["user_expressions"]
    mode, dataset = (answers[name].get("data", {}).get("text/plain") for name in ("mode", "dataset"))
    seconds = time.time() - _started[item.parent]
    print(f"\n{item.parent.name}: {seconds:.0f} s, mode {mode}, data {dataset}")
