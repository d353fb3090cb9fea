"""The workflows run what .ci/ has, on the versions of Python that the package promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def jobs(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))["jobs"])


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def python(job: dict[str, Any]) -> str:
    (version,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    return str(version)


def test_every_promised_python_is_tested() -> None:
    checks, tests = (jobs("test")[name] for name in ("checks", "tests"))
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)
    assert sorted([python(checks), *tests["strategy"]["matrix"]["python-version"]]) == sorted(promised)
    assert f'requires-python = ">={promised[0]}"' in PROJECT


def test_checks_are_those_of_the_repository() -> None:
    assert commands(jobs("test")["checks"]) == [".ci/run"]
    assert ".ci/release" in commands(jobs("release")["release"])
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert f"on Python {python(jobs('test')['checks'])}" in constraints


def test_a_wheel_built_from_the_source_archive_has_everything() -> None:
    """Build tools make the wheel from that archive, not from the checkout."""
    packages, archive = (
        re.findall(r'"([^"]+)"', re.findall(rf"^{name} = \[(.*)\]$", PROJECT, flags=re.MULTILINE)[0])
        for name in ("packages", "include")
    )
    assert {f"/{name}" for name in (*packages, "conf")} <= set(archive)
