"""Measure the rows, print the table, write results.json. Usage: python -m benchmarks [ROW ...]

Rows that were not asked for keep what results.json has of them, if it comes from the same machine and data.
"""

import json
import sys

import keras
from tqdm import tqdm

from benchmarks import base, footprint, likelihood, scaling, table, training  # noqa: F401 (they register their rows)
from benchmarks.base import QUICK

RESULTS = base.ROOT / "build" / "quick.json" if QUICK else base.FOLDER / "results.json"


def rows_named(name):
    """The row of this name, or else all rows that it begins: `dense` means `dense-epoch`, `dense-steps` and so on."""
    known = [*base.ROWS, "scaling"]
    found = [row for row in known if row == name] or [row for row in known if row.startswith(f"{name}-")]
    return found or sys.exit(f"No row {name}. There are: {', '.join(known)}")


def main(names):
    names = [row for name in names for row in rows_named(name)]
    kept = json.loads(RESULTS.read_text("utf-8")) if names and RESULTS.exists() else {}
    machine = base.machine()
    if kept and kept["machine"] != machine:
        print("results.json comes from another machine, other versions or other data: it starts anew")
        kept = {}
    rows = {row["name"]: row for row in kept.get("rows", [])}
    results = {"rows": [], "machine": machine, "scaling": kept.get("scaling")}
    if names == ["conv-time-to-elbo"]:
        training.record_time_to_elbo()
    RESULTS.parent.mkdir(exist_ok=True)
    for name in (bar := tqdm(names or [*base.ROWS, "scaling"])):
        bar.set_description(name)
        if name == "scaling":
            results["scaling"] = scaling.measure()
            scaling.draw(results["scaling"], RESULTS.with_name("scaling.png"))
        else:
            rows[name] = base.ROWS[name]()
        keras.utils.clear_session()
        results["rows"] = [rows[name] for name in base.ROWS if name in rows]
        RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(table.text(results))


if __name__ == "__main__":
    main(sys.argv[1:])
