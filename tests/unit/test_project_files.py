"""The files around the package agree with each other: versions, commands, citations, the list of papers."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import companion
from companion.chapters import paths, scoreboard

ROOT = Path(__file__).resolve().parents[2]


def _text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def _yaml(name: str) -> Any:
    return yaml.safe_load(_text(name))


PROJECT = tomllib.loads(_text("pyproject.toml"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _lock() -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in _text("requirements.lock").splitlines()]
    pinned = {}
    for requirement in map(Requirement, filter(None, lines)):
        (pin,) = requirement.specifier
        assert pin.operator == "==", f"{requirement} is no exact pin"
        pinned[_normal(requirement.name)] = Version(pin.version)
    return pinned


def unmet(required: list[str], lock: dict[str, Version]) -> list[str]:
    """Return the requirements that the lock does not hold at a version that satisfies them."""
    wanted = [Requirement(line) for line in required]
    return [str(w) for w in wanted if _normal(w.name) not in lock or lock[_normal(w.name)] not in w.specifier]


def test_lock_satisfies_the_project() -> None:
    required = [*PROJECT["project"]["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    # `make` builds without isolation, so the build's own needs are locked too.
    assert unmet([*required, *PROJECT["build-system"]["requires"], "editables"], _lock()) == []


def test_unmet_requirements_are_found() -> None:
    lock = {"torch": Version("2.13.0")}
    assert unmet(["torch>=2.10", "torch>=3", "zuko"], lock) == ["torch>=3", "zuko"]


def test_lock_names_no_local_build_or_path() -> None:
    assert not [name for name, version in _lock().items() if version.local]
    assert "file:" not in _text("requirements.lock") and "-e " not in _text("requirements.lock")


def test_environment_is_constrained_by_the_lock() -> None:
    conda = _yaml("environment.yml")["dependencies"]
    (python,) = [line for line in conda if isinstance(line, str) and line.startswith("python")]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(PROJECT["project"]["requires-python"])
    (pip,) = [line["pip"] for line in conda if isinstance(line, dict)]
    assert "--constraint requirements.lock" in pip
    (own,) = [line for line in pip if line.startswith("--editable")]
    assert set(re.findall(r"\w+", own.split("[")[1])) == set(EXTRAS)


def test_python_versions_agree() -> None:
    supported = SpecifierSet(PROJECT["project"]["requires-python"])
    matrix = _yaml(".github/workflows/book.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert matrix == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    oldest, newest = (int(version[2:]) for version in (matrix[0], matrix[-1]))
    assert f"(3, {oldest}) <= sys.version_info < (3, {newest + 1})" in _text("Makefile")


def test_make_refuses_another_python(tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(_text(name), "utf-8")
    done = subprocess.run(["make", "book", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "'false' is not Python 3.11 to 3.13" in done.stderr
    assert not (tmp_path / ".venv").exists()


def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", _text("Makefile"), re.MULTILINE))


def test_workflow_runs_the_commands_of_the_makefile() -> None:
    jobs = _yaml(".github/workflows/book.yml")["jobs"]
    ran = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert ran == [".ci/run", "make book PROFILE=cpu"]
    assert re.findall(r"make ([a-z]+)", _text(".ci/run").splitlines()[-1]) == ["test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert {"book", "test"} <= _targets()


def _release_notes(folder: Path, changelog: str, tag: str) -> subprocess.CompletedProcess[str]:
    """Run the script of the release workflow in `folder`, whose package is at version 1.2.3."""
    (folder / ".ci").mkdir(exist_ok=True)
    script = folder / ".ci" / "release-notes"
    script.write_text(_text(".ci/release-notes"))
    script.chmod(0o755)
    (folder / "pyproject.toml").write_text('[project]\nversion = "1.2.3"\n')
    (folder / "CHANGELOG.md").write_text(changelog)
    return subprocess.run([script, tag], capture_output=True, text=True)


LOG = """\
# Changelog

## [Unreleased]

- later

## [1.2.3] - 2026-01-02

- this

## [1.2.2] - 2026-01-01

- old
"""


@pytest.mark.parametrize(
    ("changelog", "tag", "notes", "error"),
    [
        (LOG, "v1.2.3", "- this", ""),
        (LOG, "v1.2.2", "", "pyproject.toml does not say 1.2.2"),
        (LOG.replace("1.2.3", "1.2.30"), "v1.2.3", "", "no section [1.2.3]"),
        (LOG.replace("- this\n", ""), "v1.2.3", "", "no section [1.2.3]"),
    ],
)
def test_release_notes_are_the_section_of_the_version(tmp_path, changelog, tag, notes, error) -> None:
    done = _release_notes(tmp_path, changelog, tag)
    assert done.stdout.strip() == notes
    assert (done.returncode == 0) == (error == "") and error in done.stderr


def test_changelog_keeps_its_form() -> None:
    heads = re.findall(r"^## (.*)$", _text("CHANGELOG.md"), re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+] - \d{4}-\d\d-\d\d", head) for head in heads[1:])
    kinds = re.findall(r"^### (.*)$", _text("CHANGELOG.md"), re.MULTILINE)
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_a_tag_releases_the_site_and_links_are_checked_weekly_without_blocking() -> None:
    release, links, book = (_yaml(f".github/workflows/{name}.yml") for name in ("release", "links", "book"))
    # YAML reads the key `on` as true.
    assert list(release[True]) == ["push"] and release[True]["push"] == {"tags": ["v*"]}
    ran = {name: [s["run"] for s in job["steps"] if "run" in s] for name, job in release["jobs"].items()}
    steps = ran["release"]
    assert release["jobs"]["release"]["needs"] == "test" and ran["test"][1:] == [".ci/run"]
    assert [step.split()[0] for step in steps] == [".ci/release-notes", "make", "tar", "gh"]
    archive = re.search(r'--file "(\S+)"', steps[2])
    assert archive and f'"{archive[1]}"' in steps[3]
    assert os.access(ROOT / ".ci/release-notes", os.X_OK)
    assert set(links[True]) == {"schedule", "workflow_dispatch"}  # neither push nor pull request waits for it
    minute, hour, day, month, weekday = links[True]["schedule"][0]["cron"].split()
    assert (day, month) == ("*", "*") and weekday.isdigit() and minute.isdigit() and hour.isdigit()
    named = [step["run"] for step in links["jobs"]["links"]["steps"] if "run" in step]
    assert {word for step in named for word in re.findall(r"make ([a-z]+)", step)} <= _targets()
    assert release["env"] == links["env"] == book["env"]


NO_NAME = "Max retries exceeded (Caused by NameResolutionError(...))"


@pytest.mark.parametrize(
    ("answers", "code", "said"),
    [
        ({"https://a.org": "", "https://b.org": ""}, 0, "0 of 2 addresses are broken"),
        ({"https://a.org": "", "https://b.org": "404 Client Error"}, 1, "book/x.md:3: https://b.org: 404 Client Error"),
        ({"https://a.org": "", "https://gone.org": NO_NAME}, 1, "1 of 2 addresses are broken"),
        ({"https://a.org": NO_NAME, "https://b.org": NO_NAME}, 0, "no network: none of the 2 addresses"),
        (None, 2, "did not run to its end"),
    ],
)
def test_broken_links_are_told_from_a_missing_network(tmp_path, answers, code, said) -> None:
    upload = _yaml(".github/workflows/links.yml")["jobs"]["links"]["steps"][-1]["with"]["path"]
    script, found = tmp_path / ".ci" / "links", (tmp_path / upload).with_suffix(".json")
    for file in (script, found):
        file.parent.mkdir(parents=True)
    script.write_text(_text(".ci/links"))
    entry = {"filename": "book/x.md", "lineno": 3}
    lines = [
        entry | {"uri": uri, "status": "broken" if info else "working", "info": info}
        for uri, info in (answers or {}).items()
    ]
    lines.append(entry | {"uri": "#claim-01-c1", "status": "unchecked", "info": ""})
    if answers is not None:
        found.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == code
    assert said in done.stdout


def _steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


@pytest.mark.parametrize("file", sorted((ROOT / ".github/workflows").glob("*.yml")), ids=lambda file: file.name)
def test_a_workflow_names_only_what_exists(file: Path) -> None:
    workflow = yaml.safe_load(file.read_text("utf-8"))
    assert set(workflow) == {"name", True, "permissions", "env", "jobs"}  # YAML reads the key `on` as true
    jobs, steps = workflow["jobs"], _steps(workflow)
    for job in jobs.values():
        needed = job.get("needs", [])
        assert {needed} <= set(jobs) if isinstance(needed, str) else set(needed) <= set(jobs)
        assert job["runs-on"] and job["steps"]
        # What checks a change may take 40 minutes; only the run of all chapters at cpu, a job of its own, takes more.
        ran = [step.get("run", "") for step in job["steps"]]
        slow = "make book PROFILE=cpu" in ran
        assert job["timeout-minutes"] <= (60 if slow else 40)
        assert not (slow and {".ci/run", "make test"} & set(ran))
    for step in steps:
        assert ("run" in step) != ("uses" in step)
        assert re.fullmatch(r"actions/[\w-]+@v\d+", step.get("uses", "actions/none@v0"))
        ran = step.get("run", "")
        assert set(re.findall(r"\bmake ([a-z]+)", ran)) <= _targets()
        assert all(os.access(ROOT / script, os.X_OK) for script in re.findall(r"\.ci/[\w-]+", ran))
        if step.get("uses", "").startswith("actions/cache@"):  # new data sets make a new cache, from the last one
            kept = step["with"]
            assert kept["key"] == f"{kept['restore-keys']}${{{{ hashFiles('companion/data/*.py') }}}}"
        if locked := step.get("with", {}).get("cache-dependency-path"):
            assert (ROOT / locked).is_file()


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "book/running.md", "book/scaling.md", "book/speed.md"]
)
def test_documented_targets_exist(name: str) -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", _text(name), re.MULTILINE))
    assert named and named <= _targets()


def test_citation_is_complete() -> None:
    citation = _yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == PROJECT["project"]["version"] == companion.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    assert citation["authors"] == [{"name": "The companion authors"}]
    assert "The companion authors" in _text("LICENSE")


def test_scoreboard_of_the_readme_is_the_generated_one() -> None:
    assert _text("README.md") == scoreboard.with_table(_text("README.md"))


def test_the_badge_is_the_generated_one() -> None:
    assert _text("book/_static/badge.svg") == scoreboard.badge()


def test_readme_is_finished() -> None:
    readme = _text("README.md")
    assert not [image for image in re.findall(r"!\[[^]]+]\(([^)]+)\)", readme) if not (ROOT / image).is_file()]
    assert not re.findall(r"\b[A-Z]+_(?:TIME|DISK)\b", readme), "minutes and disk are still to be measured"


def _cited(text: str) -> set[str]:
    return {key.strip() for keys in re.findall(r"\{cite(?::\w+)?}`([^`]+)`", text) for key in keys.split(",")}


def test_citations_resolve() -> None:
    known = re.findall(r"^@\w+\{(\w+),", _text("book/references.bib"), re.MULTILINE)
    assert len(known) == len(set(known))
    pages = [*ROOT.glob("book/*.md"), *ROOT.glob("notebooks/*.py"), *ROOT.glob("book/claims/*.yml")]
    assert set().union(*(_cited(page.read_text("utf-8")) for page in pages)) <= set(known)


def test_intro_lists_the_papers_and_links_the_chapters_that_exist() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\|$", _text("book/intro.md"), re.MULTILINE)
    assert len(rows) >= 10 and rows == [str(number) for number in range(1, len(rows) + 1)]
    table = [line for line in _text("book/intro.md").splitlines() if re.match(r"\| \d+ \|", line)]
    assert all(len(_cited(line)) == 1 for line in table)
    linked = {int(line.split("|")[1]): re.findall(r"</notebooks/(\w+)>", line) for line in table}
    assert {f"{number:02}": names for number, names in linked.items() if names} == {
        chapter[:2]: [chapter] for chapter in paths.chapters()
    }


def test_contents_list_every_page_and_chapter() -> None:
    toc = _yaml("_toc.yml")
    listed = {toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])}
    pages = {f"book/{page.stem}" for page in ROOT.glob("book/*.md")}
    chapters = {f"notebooks/{chapter}" for chapter in paths.chapters()}
    assert listed == pages | chapters | {"genindex"}  # Sphinx writes the last
