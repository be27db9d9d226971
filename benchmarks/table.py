"""results.json as a table, for the terminal and for the book."""

import statistics

HEADER = ("row", "measured", "beside", "ours", "theirs", "ratio", "spread", "target", "met")


def cells(row):
    """One row's texts."""
    return (
        row["name"],
        row["what"],
        row["against"] or "–",
        amount(row["ours"], row["unit"]),
        amount(row["theirs"], row["unit"]),
        "–" if row["ratio"] is None else f"{row['ratio']:.2f}",
        "–" if row["spread"] is None else "{:.2f} to {:.2f}".format(*row["spread"]),
        target(row),
        {True: "yes", False: "no", None: "–"}[row["met"]],
    )


def amount(value, unit):
    return "–" if value is None else f"{value:.3g} {unit}" if value < 1_000 else f"{value:,.0f} {unit}"


def target(row):
    if row["target"] is None:
        return "–"
    return f"≥ {row['target']:g}" if row["against"] else f"≤ {row['target']:g} {row['unit']}"


def machine_line(machine):
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    data = "MNIST" if machine["data"] == "mnist" else "scikit-learn's optical digits, not MNIST"
    quick = " A quick run: its numbers mean nothing." if machine["quick"] else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, {machine['system']}; "
        f"Python {machine['python']}, {versions}. Data: {data}.{quick}"
    )


def markdown(results):
    """The table, the rows' notes and the machine, as Markdown for the book."""
    lines = ["| measured | beside | ours | theirs | ratio (lowest to highest) | to reach |", "|" + "---|" * 6]
    for row in results["rows"]:
        name, what, against, ours, theirs, ratio, spread, target, met = cells(row)
        ratio += f" ({spread})" if row["spread"] else ""
        target += {"yes": ", reached", "no": ", **not reached**"}.get(met, "")
        lines.append("| " + " | ".join([f"{what} (`{name}`)", against, ours, theirs, ratio, target]) + " |")
    lines += ["", *(f"- `{row['name']}`: {row['note']}." for row in results["rows"] if row["note"])]
    return "\n".join([*lines, "", f"Measured on {machine_line(results['machine'])}"])


def recipes(record):
    """The trainings of ablation.json as a table, in Markdown."""
    lines = [
        "| training | −ELBO on validation digits, run by run | median | on test digits | processor seconds |",
        "|" + "---|" * 5,
    ]
    for training in record.values():
        runs = training["runs"]
        validation, test, seconds = (
            statistics.median(run[name] for run in runs) for name in ("validation", "test", "cpu_seconds")
        )
        each = " / ".join(f"{run['validation']:.2f}" for run in runs)
        lines.append(f"| {training['what']} | {each} | {validation:.2f} | {test:.2f} | {seconds:.0f} |")
    return "\n".join(lines)


def text(results):
    """The table for a terminal, notes below their rows."""
    rows = [HEADER, *map(cells, results["rows"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    notes = ["", *(row["note"] for row in results["rows"])]
    lines = [machine_line(results["machine"])]
    for texts, note in zip(rows, notes, strict=True):
        lines.append("  ".join(map(str.ljust, texts, widths)).rstrip())
        lines += [f"    {note}"] if note else []
    return "\n".join(lines)
