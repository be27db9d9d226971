"""GitHub's workflows: what they name exists, no job has more rights than it needs, their scripts do what they say."""

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
TEXTS = {path.name: path.read_text("utf-8") for path in sorted(FOLDER.glob("*.yml"))}
WORKFLOWS = {name: yaml.load(text, yaml.BaseLoader) for name, text in TEXTS.items()}
JOBS = {(file, name): job for file, workflow in WORKFLOWS.items() for name, job in workflow["jobs"].items()}
STEPS = [(file, name, step) for (file, name), job in JOBS.items() for step in job.get("steps", [])]
COMMANDS = [(file, name, step["run"]) for file, name, step in STEPS if "run" in step]
in_bash = pytest.mark.skipif(os.name != "posix", reason="the runner's shell is bash")


def test_all_workflows_are_read():
    assert sorted(WORKFLOWS) == ["book.yml", "test.yml", "weekly.yml"]
    assert len(JOBS) >= 15 and len(STEPS) >= 40 and len(COMMANDS) >= 20


@pytest.mark.parametrize("job", JOBS.values(), ids=map(" ".join, JOBS))
def test_a_job_has_a_time_limit_and_rights_of_its_own(job):
    assert job["permissions"]
    if "uses" not in job:  # the called workflow's jobs have limits
        assert 5 <= int(job["timeout-minutes"]) <= 150


def test_no_right_is_given_to_all_jobs():
    assert [workflow["permissions"] for workflow in WORKFLOWS.values()] == [{}] * len(WORKFLOWS)
    writers = {
        name: [right for right, level in job["permissions"].items() if level == "write"]
        for (_, name), job in JOBS.items()
    }
    assert {name: rights for name, rights in writers.items() if rights} == {
        "book": ["pages", "id-token"],
        "publish": ["pages", "id-token"],
        "report": ["issues"],
    }


def test_actions_are_pinned_by_commit_and_say_their_version():
    pins = {}
    for text in TEXTS.values():
        for line in re.findall(r"uses: (.+)", text):
            if not line.startswith("./"):
                action, pin = re.fullmatch(r"([\w-]+/[\w-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)", line).groups()
                assert pins.setdefault(action, pin) == pin, f"{action} in two versions"
    assert "actions/checkout" in pins and len(pins) >= 5


def test_a_checkout_leaves_no_credentials_behind():
    checkouts = [step for _, _, step in STEPS if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) >= 12
    assert all(step["with"]["persist-credentials"] == "false" for step in checkouts)


def test_targets_and_files_that_a_workflow_names_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    asked = [target for *_, command in COMMANDS for target in re.findall(r"\bmake ([\w-]+)", command)]
    assert len(asked) >= 10 and set(asked) <= set(targets), set(asked) - set(targets)

    named = [word for *_, command in COMMANDS for word in re.findall(r"(?<![\w./])[\w/]+\.(?:py|lock|txt)\b", command)]
    named += [word for *_, command in COMMANDS for word in re.findall(r"-m pytest.* ([a-z]+)$", command)]
    named += [word.replace(".", "/") + ".py" for *_, command in COMMANDS for word in re.findall(r"tools\.\w+", command)]
    named += [word for *_, step in STEPS for word in step.get("with", {}).get("cache-dependency-path", "").split()]
    assert len(named) >= 10 and not [name for name in named if not (ROOT / name).exists()]


def test_quick_mode_is_for_notebooks_alone():
    """The benchmarks' tests, among others, mean full length."""
    assert "VAE_UTILS_QUICK" not in str([job.get("env") for job in JOBS.values()])
    quick = [step["run"] for *_, step in STEPS if "VAE_UTILS_QUICK" in step.get("env", {})]
    assert len(quick) == 2 and all("--nbval-lax" in command for command in quick)


def test_the_book_waits_for_every_job_and_no_failure_goes_unreported():
    for file, last in (("test.yml", "book"), ("weekly.yml", "report")):
        jobs = WORKFLOWS[file]["jobs"]
        assert set(jobs[last]["needs"]) == set(jobs) - {last}
    assert WORKFLOWS["book.yml"]["jobs"]["publish"]["needs"] == "build"
    assert set(WORKFLOWS["book.yml"]["on"]) == {"workflow_call"}, "nothing else may start what publishes"


# The two scripts, with a `gh` that answers as GitHub would and writes down what it was asked.


def run_script(tmp_path, file, name, gh):
    (tmp_path / "gh").write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/asked"\n{gh}\n', "utf-8")
    (tmp_path / "gh").chmod(0o755)
    script = next(step["run"] for where, _, step in STEPS if (where, step.get("name")) == (file, name))
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GITHUB_REPOSITORY": "you/fork",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "TITLE": "The weekly run fails",
        "BODY": "the run",
    }
    (tmp_path / "output").touch()
    return subprocess.run(["bash", "-e", "-c", script], env=environment, capture_output=True, text=True)


@in_bash
@pytest.mark.parametrize(
    ("gh", "status", "output", "notice"),
    [
        ("echo workflow", 0, "on=yes\n", False),
        ("echo legacy", 0, "", True),
        ("echo '{}'; echo 'gh: Not Found (HTTP 404)' >&2; exit 1", 0, "", True),
        ("echo 'gh: Server Error (HTTP 502)' >&2; exit 1", 1, "", False),
    ],
)
def test_without_pages_the_book_is_not_published_and_the_run_says_why(tmp_path, gh, status, output, notice):
    outcome = run_script(tmp_path, "book.yml", "is Pages switched on?", gh)
    assert outcome.returncode == status
    assert (tmp_path / "output").read_text() == output
    assert outcome.stdout.startswith("::notice title=The book is not published::") == notice
    assert "repos/you/fork/pages" in (tmp_path / "asked").read_text()


@in_bash
@pytest.mark.parametrize(("open_issue", "asked"), [("", "issue create --title The"), ("7", "issue comment 7 --body")])
def test_a_weekly_failure_opens_one_issue_and_adds_to_it(tmp_path, open_issue, asked):
    outcome = run_script(tmp_path, "weekly.yml", "report", f'[ "$2" = list ] && echo "{open_issue}" || true')
    assert outcome.returncode == 0
    first, second = (tmp_path / "asked").read_text().splitlines()
    assert first.startswith("issue list") and second.startswith(asked)


def zizmor(*paths):
    program = shutil.which("zizmor", path=sysconfig.get_path("scripts"))
    return subprocess.run([program, "--offline", "--no-progress", *paths], capture_output=True, text=True)


def test_zizmor_reports_nothing(tmp_path):
    outcome = zizmor(ROOT / ".github")
    assert outcome.returncode == 0, outcome.stdout
    assert all(re.search(rf"completed .*{name}", outcome.stderr) for name in WORKFLOWS)
    damaged = tmp_path / ".github" / "workflows" / "test.yml"
    damaged.parent.mkdir(parents=True)
    damaged.write_text(re.sub(r"@[0-9a-f]{40} # v\d\S+", "@main", TEXTS["test.yml"]), "utf-8")
    assert "unpinned-uses" in zizmor(tmp_path).stdout
