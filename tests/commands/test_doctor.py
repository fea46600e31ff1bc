"""`reparam doctor`: what is wrong is named with the next step, and fails."""

import io
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import typer
from experiments import type_in

from reparam.commands import doctor, tools
from reparam.commands import project as projects
from reparam.commands.doctor import Finding
from reparam.machine.threads import COPIES
from reparam.paths import Paths

DEAD = 2**22 + 1  # beyond the largest number of a process
LOCKS = {"train": os.getpid(), "evaluate": DEAD, "export": "", "report": 10**30, "download": "9" * 5_000, "x": "é"}


def test_without_repositories_it_fails_and_says_what_to_do(project: Paths, reparam: Callable[..., Any]) -> None:
    code, printed = reparam("doctor")
    lines = printed.splitlines()
    after = dict(itertools.pairwise(lines))
    assert code == 1
    assert after["git           BROKEN: no repository"] == (
        "              next: `git init`, or `reparam init` where there is no project yet"
    )
    assert "params.yaml   valid" in lines
    assert "MLflow        off" in lines


def test_what_is_tolerable_does_not_fail(
    project: Paths, reparam: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(_: Paths) -> list[Finding]:
        return [Finding("git", "no commit", "`git commit`", is_tolerable=True)]

    monkeypatch.setattr(doctor, "CHECKS", (check,))
    assert reparam("doctor") == (0, "git           note: no commit\n              next: `git commit`\n")


def test_the_default_of_a_fresh_repository_has_no_commit_and_no_secret(tmp_path: Path) -> None:
    type_in(tmp_path, "git", "init", "--quiet")
    type_in(tmp_path, "dvc", "init", "--quiet")
    type_in(tmp_path, "dvc", "remote", "add", "team", "https://me:hunter2@127.0.0.1:9/store")
    type_in(tmp_path, "dvc", "remote", "add", "disk", str(tmp_path / "not there yet"))
    (tmp_path / "share").mkdir()
    type_in(tmp_path, "dvc", "remote", "add", "share", str(tmp_path / "share"))
    type_in(tmp_path, "dvc", "remote", "add", "bucket", "s3://models")
    paths = Paths(tmp_path, tmp_path)
    found = [*doctor.git(paths), *doctor.dvc(paths)]
    by_remote = {finding.text.split()[0]: finding for finding in found if finding.name == "DVC remotes"}
    assert by_remote["disk"].text == f"disk {tmp_path}/not there yet: no folder is there"
    assert by_remote["disk"].remedy == "mount its disk; or `dvc push`, which makes a new folder"
    assert by_remote["share"] == Finding("DVC remotes", f"share {tmp_path}/share")
    assert by_remote["team"].text == "team https://***@127.0.0.1:9/store"  # whose absence DVC takes for an empty one
    assert by_remote["bucket"].text.startswith("bucket s3://models: ")
    assert by_remote["bucket"].remedy == "docs/how-to/remote.md has plugins and credentials of each kind"
    assert "hunter2" not in str(found)
    assert [finding for finding in found if finding.name != "DVC remotes"] == [
        Finding("git", "no commit", "`git add . && git commit`: experiments start from a commit", is_tolerable=True),
        Finding("DVC cache", str(tmp_path / ".dvc/cache/files/md5")),
        Finding("DVC locks", "none"),
    ]


def test_a_library_that_is_missing_is_named(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: "1" for name in ("python", "reparam", *doctor.LIBRARIES) if name != "scipy"}
    monkeypatch.setattr(doctor, "versions", lambda: found)
    assert list(doctor.installed(project))[-1] == Finding("libraries", "not found: scipy", doctor.INSTALL)


def test_an_environment_that_is_not_active_is_noticed(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "executable", "/venv/bin/python")
    monkeypatch.setattr(shutil, "which", lambda command: f"/usr/bin/{command}")
    text = "DVC would run /usr/bin/python, but this is /venv/bin/python"
    assert list(doctor.stages(project)) == [Finding("stages", text, "activate the environment: `. /venv/bin/activate`")]
    monkeypatch.setattr(shutil, "which", lambda command: f"/venv/bin/{command}")
    project.installation.write_text("")
    assert list(doctor.stages(project)) == [Finding("stages", "start with /venv/bin/reparam")]


def test_a_provider_counts_once_its_libraries_load(
    project: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def session(_: bytes, providers: list[str]) -> Any:
        sys.stdout.write("a loud message")
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    text = "CPUExecutionProvider; listed without their libraries: CUDAExecutionProvider"
    assert list(doctor.providers(project)) == [Finding("onnxruntime", text)]
    assert capsys.readouterr().out == ""


def test_a_damaged_store_has_the_remedy_of_its_message(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    project.tracking_database.write_text("no database at all")
    project.tracking_spool.mkdir()
    (project.tracking_spool / "run.jsonl").write_text("{}\n")
    damaged, kept = doctor.tracking(project)
    assert damaged.text.startswith(f"{project.tracking_database}: wanted a database of MLflow, found a damaged one")
    assert damaged.remedy.startswith("Move it away")
    assert kept == Finding(
        "MLflow", "runs with calls that were not delivered: 1", "`reparam replay`", is_tolerable=True
    )


def test_processes_that_are_gone_hold_nothing(project: Paths) -> None:
    project.locks.mkdir()
    for stage, content in LOCKS.items():
        (project.locks / f"{stage}.pid").write_text(f"{content}\n", encoding="utf-8")
    assert list(doctor.working_copy(project))[1] == Finding("running", f"train in process {os.getpid()}")
    owners = {
        "write": {"a": {"pid": os.getpid(), "cmd": "dvc repro"}},
        "read": {"b": [{"pid": DEAD, "cmd": "dvc add"}]},
    }
    (project.root / "rwlock").write_text(json.dumps(owners))
    assert list(doctor._locks(project.root)) == [Finding("DVC locks", f"process {os.getpid()}: dvc repro")]


def test_a_damaged_file_of_locks_is_to_be_removed(tmp_path: Path) -> None:
    (tmp_path / "rwlock").write_text("{")
    (found,) = doctor._locks(tmp_path)
    assert (found.text, found.remedy) == (f"{tmp_path}/rwlock: damaged", f"when no `dvc` runs: `rm {tmp_path}/rwlock`")


@pytest.mark.parametrize(
    ("statuses", "workers", "text", "remedy"),
    [
        ([], 0, "empty", ""),
        (["Queued", "Queued"], 0, "2 queued", "`dvc queue start` runs what is queued"),
        (["Queued", "Running"], 1, "1 queued, 1 running", ""),
        (["Failed"], 0, "1 failed", "`dvc queue logs task-0` says why; `dvc queue remove --failed` forgets it"),
        (
            ["Success", *["Failed"] * 4],
            0,
            "1 success, 4 failed",
            "`dvc queue logs task-1`, `dvc queue logs task-2`, `dvc queue logs 3abcdef`, ... says why; "
            "`dvc queue remove --failed` forgets it",
        ),
    ],
)
def test_a_queue_that_nobody_works_on_is_noticed(statuses: list[str], workers: int, text: str, remedy: str) -> None:
    queue = SimpleNamespace(
        status=lambda: [
            {"status": status, "name": f"task-{number}" if number != 3 else None, "rev": f"{number}abcdef01"}
            for number, status in enumerate(statuses)
        ],
        worker_status=lambda: {"w": [{}] * workers},
    )
    assert list(doctor._queue(queue)) == [Finding("DVC queue", text, remedy, is_tolerable=True)]


def test_a_disk_that_is_nearly_full_is_broken(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1.5e9))
    (found,) = doctor.disk(project)
    assert (found.text, found.is_broken) == (f"1.5 GB free at {project.root}", True)


def test_parameters_and_the_record_of_the_package_are_checked(
    project: Paths, params: dict[str, Any], write_params: Callable[[dict[str, Any]], None]
) -> None:
    del params["report"]["title"]
    write_params(params)
    project.installation.write_text(projects.installation() + "\n")
    valid, _, source = doctor.working_copy(project)
    assert valid.text.endswith("report.title: missing; wanted null or text")
    assert source.remedy == "`reparam init --update`, then `dvc repro`"
    project.installation.write_text(projects.installation())
    assert [finding.name for finding in doctor.working_copy(project)] == ["params.yaml", "running"]


def test_stages_of_temporary_experiments_run_too(project: Paths) -> None:
    _, nothing = doctor.working_copy(project)
    assert nothing == Finding("running", "no stage in this folder or in a temporary copy of it")
    places = {Path(): "train", COPIES / "standalone/tmpab": "evaluate", COPIES / "tmpcd": "export"}
    for place, stage in places.items():
        (project.root / place / ".locks").mkdir(parents=True)
        (project.root / place / ".locks" / f"{stage}.pid").write_text(f"{os.getpid()}\n")
    _, running = doctor.working_copy(project)
    number = os.getpid()
    assert running.text == (
        f"train in process {number}, evaluate in process {number} (experiment in tmpab), "
        f"export in process {number} (experiment in tmpcd)"
    )


@pytest.mark.parametrize(("changed", "text"), [(0, "0 changed files"), (1, "1 changed file"), (2, "2 changed files")])
def test_changed_files_are_counted(changed: int, text: str, tmp_path: Path) -> None:
    type_in(tmp_path, "git", "init", "--quiet")
    type_in(tmp_path, "git", "commit", "--quiet", "--allow-empty", "--message", "one")
    for number in range(changed):
        (tmp_path / str(number)).touch()
    (found,) = doctor.git(Paths(tmp_path, tmp_path))
    assert found.text == f"commit {type_in(tmp_path, 'git', 'rev-parse', '--short', 'HEAD')}, {text}"


def test_each_finding_is_written_before_the_next_check(project: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    seen = []

    def first(_: Paths) -> list[Finding]:
        return [Finding("one", "found")]

    def second(_: Paths) -> list[Finding]:
        seen.append(written.getvalue())
        return []

    monkeypatch.setattr(doctor, "CHECKS", (first, second))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    with pytest.raises(typer.Exit):
        tools.doctor()
    assert seen == [b"one           found\n"]


def gpu(name: str, gib: int) -> Any:
    return SimpleNamespace(name=name, total_memory=gib * 2**30)


def test_gpus_are_named_with_their_memory_and_how_to_use_all(monkeypatch: pytest.MonkeyPatch, project: Paths) -> None:
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: gpu(f"GPU {number}", 80))
    one, all_ = doctor.devices(project)
    assert one == Finding("devices", f"{cores}, GPU 0 (80 GiB), GPU 1 (80 GiB)")
    assert all_.remedy == 'all: `export REPARAM_LAUNCH="torchrun --nproc-per-node gpu"`'
    assert not all_.is_broken
    monkeypatch.setenv("REPARAM_LAUNCH", "torchrun --nproc-per-node gpu")
    assert list(doctor.devices(project)) == [one]


def test_a_gpu_that_torch_cannot_use_is_noticed(monkeypatch: pytest.MonkeyPatch, project: Paths) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "DRIVER", project.params)  # a file that is there
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (found,) = doctor.devices(project)
    assert found.text == f"{os.cpu_count()} CPU cores, no GPU, but an NVIDIA driver; torch was built for CPUs"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [finding.text for finding in doctor.devices(project)] == [f"{os.cpu_count()} CPU cores, no GPU"]
