"""Who may talk to a pipeline's scheduler, nannies and workers: its own processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner
from distributed import Nanny, Scheduler, SpecCluster
from jobs_fakes import make_study
from places import PROGRAMS
from study_runs import ENVIRONMENT, ONLY_EXTRACT, start

from hada.extract.common.errors import HadaError
from hada.pipelines.cli import pipeline
from hada.pipelines.execution import credentials, dask_pools
from hada.pipelines.state import Folder, private_folder

pytestmark = pytest.mark.slow

NOBODY = 65534


@pytest.fixture(scope="module")
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, as a project folder often is; pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="study-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def living(open_folder: Path) -> Iterator[tuple[Path, psutil.Process]]:
    """`hada-pipeline run`, as typed, while its worker is at work."""
    slow = {"family: fake, weights: a": "family: jobs_fakes:Accident, weights: slow:pace"}
    make_study(open_folder, ONLY_EXTRACT, **slow)
    (open_folder / "pace").write_text("60")
    process = start(open_folder, "--workers", "1")
    family = psutil.Process(process.pid)
    end = time.monotonic() + 60
    # Its worker has claimed a shard: everything is up.
    while not list(open_folder.glob("stores/tiny/*/*/commit/*.lock")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    yield open_folder, family
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def listening(family: psutil.Process) -> list[psutil._common.pconn]:
    return [
        connection
        for process in (family, *family.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


def attack(ports: list[int], files: list[Path], user: int | None) -> dict[str, Any]:
    """What another process finds out: as another user, or as the same one."""
    who = os.getuid() if user is None else user
    place = PROGRAMS / "attacker.py"
    words = [sys.executable, str(place), str(who), *map(str, ports), "--", *map(str, files)]
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(params=["another user", "the same user"])
def user(request: pytest.FixtureRequest) -> int | None:
    if request.param == "the same user":
        return None
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    return NOBODY


def test_nobody_else_is_answered(living: tuple[Path, psutil.Process], user: int | None) -> None:
    folder, family = living
    sockets = listening(family)
    # The scheduler and its nanny in one process, the worker in another; and nothing beside.
    assert len(sockets) == 3, sockets
    assert {connection.laddr.ip for connection in sockets} == {"127.0.0.1"}
    state = folder / "runs/pipelines/study"
    secrets = [state, state / "lock", state / "logs"]
    for process in (family, *family.children(recursive=True)):
        secrets.append(Path(f"/proc/{process.pid}/environ"))
        for name in ("hada-dask-", "hada-marks-"):
            secrets += Path(tempfile.gettempdir()).glob(f"{name}*")
    ports = [connection.laddr.port for connection in sockets]
    found = attack(ports, [*secrets, folder / "study.yaml"], user)
    assert found["in"] == []
    if user is not None:
        assert found["uid"] == user
        assert found["read"] == [str(folder / "study.yaml")]  # the folder itself can be entered


def test_the_attacker_would_get_in_without() -> None:
    """The same attack on Dask as it is by default: on each kind of server."""
    options = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    quiet = {"silence_logs": "CRITICAL", "memory_limit": 0, "nthreads": 1}
    cls = {"cls": Nanny, "options": {**options, **quiet}}
    with SpecCluster(scheduler={"cls": Scheduler, "options": options}, workers={0: cls}) as made:
        me = psutil.Process()
        ports = {c.laddr.port for c in listening(me)}
        found = attack(sorted(ports), [], None)
        ways = [way for _, way in found["in"]]
        assert ways.count("tcp") == 3, found
        assert ways.count("http") == 2
        assert made.status.name == "running"


def test_what_is_written_is_for_its_user_alone(living: tuple[Path, psutil.Process]) -> None:
    state = living[0] / "runs/pipelines/study"
    for path in (state, *state.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


def test_an_open_folder_is_closed_and_one_of_others_refused(tmp_path: Path) -> None:
    folder = Folder(tmp_path, "study")
    folder.path.mkdir(parents=True)
    folder.path.chmod(0o777)
    folder.record({"key": "train/a", "status": "done"})
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder.path / "tasks.jsonl").stat().st_mode) == 0o600
    (tmp_path / "file").touch()
    with pytest.raises(HadaError, match="expected a folder"):
        private_folder(tmp_path / "file")
    if os.geteuid() == 0:
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from hada.pipelines.state import private_folder\n"
            "os.setuid(65534)\n"
            "private_folder(Path(sys.argv[1]))\n"
        )
        with tempfile.TemporaryDirectory() as open_to_all:
            Path(open_to_all).chmod(0o755)
            (Path(open_to_all) / "theirs").mkdir()
            words = [sys.executable, "-c", code, f"{open_to_all}/theirs"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert "belongs to another user (uid 0)" in done.stderr


def test_keys_of_batch_jobs_do_not_stay(tmp_path: Path) -> None:
    with credentials.shared_folder(tmp_path / "state") as keys:
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700
        (keys / "key").write_text("of this run")
    assert list(keys.iterdir()) == []
    (keys / "key").write_text("of a driver that was killed")
    with credentials.shared_folder(tmp_path / "state") as keys:
        assert list(keys.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "says", "code"),
    [
        ("tcp://127.0.0.1:1", "warning: --on tcp://127.0.0.1:1: anybody who reaches", 1),
        ("tls://127.0.0.1:1", "Set distributed.comm.tls.ca-file", 2),
        ("http://127.0.0.1:1", "no scheduler is reached by http://, but by tcp://", 2),
        ("tcp://", "no address of a scheduler", 2),
        ("tcp://127.0.0.1:port", "no address of a scheduler", 2),
    ],
)
def test_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, says: str, code: int
) -> None:
    make_study(tmp_path, ONLY_EXTRACT)
    monkeypatch.chdir(tmp_path)
    patient = dask_pools.Client
    monkeypatch.setattr(dask_pools, "Client", lambda *a, **k: patient(*a, **{**k, "timeout": "1s"}))
    done = CliRunner().invoke(pipeline, ["run", "study.yaml", "--on", address])
    assert says in done.output
    assert done.exit_code == code, done.output
    assert "unexpected" not in done.output


def test_a_scheduler_with_tls_works_with_dask_s_own_settings(tmp_path: Path) -> None:
    """`--on tls://` finds the certificates where Dask's documentation puts them."""
    make_study(tmp_path, ONLY_EXTRACT.replace("[train, val]", "[val]").replace(", two", ""))
    security = credentials.temporary()
    files = {"CA_FILE": "ca_file", "CLIENT__CERT": "client_cert", "CLIENT__KEY": "client_key"}
    environment = dict(ENVIRONMENT)
    for variable, name in files.items():
        file = tmp_path / name
        file.touch(0o600)
        file.write_text(getattr(security, f"tls_{name}"))
        environment[f"DASK_DISTRIBUTED__COMM__TLS__{variable}"] = str(file)
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    worker = {**common, "nthreads": 1, "memory_limit": 0, "silence_logs": "CRITICAL"}
    with SpecCluster(
        scheduler={"cls": Scheduler, "options": {**common, "dashboard_address": "127.0.0.1:0"}},
        workers={0: {"cls": Nanny, "options": {**worker, "dashboard": False}}},
        security=security,
    ) as made:
        words = ["run", "study.yaml", "--on", made.scheduler_address]
        done = subprocess.run(
            [sys.executable, "-m", "hada.pipelines", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr


def test_the_dashboard_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials.importlib.util, "find_spec", lambda _name: None)
    make_study(tmp_path, ONLY_EXTRACT)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(pipeline, ["run", "study.yaml", "--dashboard"])
    assert (done.exit_code, "pip install bokeh" in done.output) == (2, True)
    monkeypatch.undo()
