"""The examples for schedules, and the image: read by the tools that would read them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from places import ROOT

from hada.pipelines.cli import pipeline

EXAMPLES = ROOT / "pipelines/examples"


def check_command(words: list[str]) -> None:
    """A command line that hada-pipeline takes as it stands."""
    command = pipeline.commands[words[0]]
    context = command.make_context(words[0], list(words[1:]), resilient_parsing=False)
    assert context.params["file"] == Path("study.yaml")


def test_units_are_valid(tmp_path: Path) -> None:
    service = (EXAMPLES / "hada-study.service").read_text()
    line = next(x for x in service.splitlines() if x.startswith("ExecStart="))
    check_command(shlex.split(line)[2:])
    assert "SuccessExitStatus=3 4" in service
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    units = [str(EXAMPLES / f"hada-study.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
    )
    assert "hada-study" not in done.stderr, done.stderr
    calendar = next(
        x.partition("=")[2]
        for x in (EXAMPLES / "hada-study.timer").read_text().splitlines()
        if x.startswith("OnCalendar=")
    )
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_the_cron_job() -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes/cronjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "CronJob")
    spec = job["spec"]
    assert len(spec["schedule"].split()) == 5
    assert spec["concurrencyPolicy"] == "Forbid"
    template = spec["jobTemplate"]["spec"]
    pod = template["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    check_command(container["args"])
    names = {rule["onExitCodes"]["containerName"] for rule in template["podFailurePolicy"]["rules"]
             if "onExitCodes" in rule}  # fmt: skip
    assert names == {container["name"]}
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    # Longer than the driver's own limit, so that it ends by itself.
    hours = float(container["args"][container["args"].index("--max-hours") + 1])
    assert template["activeDeadlineSeconds"] > 3600 * hours


def test_the_cron_job_fits_kubernetes_schema() -> None:
    checker = pytest.importorskip("kubernetes_validate", reason="needs kubernetes-validate")
    job = yaml.safe_load((EXAMPLES / "kubernetes/cronjob.yaml").read_text())
    checker.validate(job, checker.latest_version(), strict=True)
    job["spec"]["jobTemplate"]["spec"]["backofLimit"] = 3
    with pytest.raises(checker.ValidationError, match="backofLimit"):
        checker.validate(job, checker.latest_version(), strict=True)


def test_the_image() -> None:
    text = (ROOT / "Dockerfile").read_text()
    joined = re.sub(r"\\\n", " ", text)
    lines = [x for x in joined.splitlines() if x and not x.startswith("#")]
    words = {line.split()[0] for line in lines}
    assert words <= {"ARG", "FROM", "ENV", "RUN", "WORKDIR", "COPY", "USER", "ENTRYPOINT", "CMD"}
    assert 'ENTRYPOINT ["hada-pipeline"]' in lines
    last = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 1000" in last
    extras = (ROOT / "pyproject.toml").read_text()
    for extra in re.search(r"'\.\[(.*?)\]'", text)[1].split(","):  # type: ignore[index]
        assert f"\n{extra} = [" in extras


def tool(name: str) -> str:
    """Where a checker is that lies beside Python or on the path."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return shutil.which(name, path=places) or pytest.skip(f"needs {name}")


def lint(text: str) -> tuple[int, str]:
    words = [tool("hadolint"), "--no-color", "-"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_the_image_s_linter_has_nothing_to_say() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert lint(text) == (0, "")
    code, said = lint(text.replace("USER 1000", "USER root"))
    assert code == 1
    assert "DL3002" in said


def test_the_documentation_s_commands_and_keys() -> None:
    text = (ROOT / "docs/pipelines.md").read_text()
    for line in re.findall(r"^hada-pipeline .*study\.yaml[^#\n]*", text, re.MULTILINE):
        check_command(shlex.split(line.partition("  ")[0])[1:])
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block is not None
    file = Path("study.yaml")
    file.write_text(block[1])
    from hada.extract.manifest import load_shipped
    from hada.pipelines.study.config import load_pipeline

    assert load_pipeline(file, load_shipped({})).cluster.elements == 32
