from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from reparam.paths import Paths, anchored

NAMES = sorted(name for name, value in vars(Paths).items() if isinstance(value, property))


def test_the_current_directory_is_the_working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert Paths.here() == Paths(root=tmp_path, shared=tmp_path)


def test_an_experiment_in_a_scratch_copy_shares_downloads_and_tracking_store_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", "/repository")
    paths = Paths.here()
    shared = {name for name in NAMES if getattr(paths, name).is_relative_to("/repository")}
    assert shared == {"downloads", "resume", "sweeps", "tracking_artifacts", "tracking_database", "tracking_spool"}
    assert {name for name in NAMES if getattr(paths, name).is_relative_to(tmp_path)} == set(NAMES) - shared
    assert paths.tracking_database == Path("/repository/mlflow.db")
    assert paths.downloads == Path("/repository/data/.downloads")


def test_a_relative_path_of_a_parameter_starts_at_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    found = [anchored(path, Path("/r")) for path in ("images", "../others", "/data", "~/images", "~nobody-here/x")]
    assert found == [
        Path(path) for path in ("/r/images", "/r/../others", "/data", "/home/ada/images", "/r/~nobody-here/x")
    ]


@pytest.mark.parametrize(
    ("value", "wanted"), [("/mnt/checkpoints", "/mnt/checkpoints"), ("kept", "/r/kept"), ("", "/r/.resume")]
)
def test_checkpoints_are_where_the_environment_says(value: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_RESUME_DIR", value)
    assert Paths(Path("/w"), Path("/r")).resume == Path(wanted)


def test_no_two_names_are_for_one_file_or_for_a_file_inside_another() -> None:
    paths = Paths(Path("/w"), Path("/r"))
    files = [getattr(paths, name) for name in NAMES]
    assert len(files) > 10
    assert [(a, b) for a in files for b in files if a is not b and a.is_relative_to(b)] == []


def test_a_path_is_named_as_the_user_would_type_it() -> None:
    paths = Paths(Path("/w"), Path("/r"))
    assert paths.relative(paths.model) == "models/vae"
    assert paths.relative(paths.report) == "reports/index.html"
    assert paths.relative(paths.tracking_database) == "/r/mlflow.db"


def test_paths_cannot_be_changed() -> None:
    paths = Paths(Path("/w"), Path("/r"))
    with pytest.raises(FrozenInstanceError):
        paths.root = Path("/elsewhere")
    assert paths.params == Path("/w/params.yaml")
