"""Trials from their beginning to their end, with a small script in the place of DVC."""

import os
import time
from typing import Any

import optuna
import pytest
from filelock import FileLock
from sweeps import Sweeps, params, states

from reparam.errors import StaleInputError
from reparam.sweep import study as studies
from reparam.sweep import trial as trials
from reparam.sweep import worker
from reparam.sweep.trial import score_of


def test_each_trial_is_an_experiment_of_its_name_with_what_differs_set(sweeps: Sweeps) -> None:
    sweeps.write(fixed={"train.epochs": 5}, parameters={"model.latent": [2, 3]}, trials=2, sampler="grid")
    sweeps.behave("begin(); finish(-100.0 - number)")
    study = sweeps.work()
    assert [call[:3] for call in sweeps.calls()] == [
        [f"s-{number}", {"train.epochs": "5", **({"model.latent": "2"} if latent == 2 else {})}, "evaluate"]
        for number, latent in enumerate(one["model.latent"] for one in params(study))
    ]
    assert sorted(one["model.latent"] for one in params(study)) == [2, 3]  # 3 is that of params.yaml
    assert (study.optuna.best_value, study.optuna.best_trial.number) == (-100.0, 0)


def test_a_trial_that_fails_is_kept_with_its_log_and_the_others_go_on(
    sweeps: Sweeps, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.behave("begin(); print('no memory') or sys.exit(3) if number == 1 else finish()")
    study = sweeps.work()
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE"]
    log = sweeps.paths.sweeps / "s/1.log"
    assert log.read_text() == "Reproducing experiment 's-1'\nno memory\n"
    failure = f"`dvc exp run` ended with code 3; see {log}"
    assert study.trials[1].user_attrs["failure"] == failure
    assert capsys.readouterr().out.splitlines()[1].endswith(failure)


def test_a_trial_without_the_metric_fails_and_names_what_there_is(sweeps: Sweeps) -> None:
    sweeps.write(metric="nll", trials=1)
    (trial,) = sweeps.work().trials
    assert trial.user_attrs["failure"] == (
        f"wanted the metric nll, found elbo_validation; see {sweeps.paths.sweeps / 's/0.log'}"
    )


def test_values_that_no_trial_can_have_together_fail_without_dvc(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "DVC", ("no-such-command",))
    study = sweeps.open(1)
    study.plan.file.fixed["train.epochs"] = -1  # as if a check of several parameters together refused it
    monkeypatch.setattr(type(study), "require_unchanged", lambda *_: None)
    worker.work(study, sweeps.paths)
    (trial,) = study.trials
    assert trial.user_attrs["failure"].startswith("s: 1 problem\n  train.epochs: wanted ")


def test_processes_join_one_study_and_choose_what_one_alone_would_have_chosen(sweeps: Sweeps) -> None:
    sweeps.write(study="alone")
    alone = params(sweeps.work(4))
    sweeps.write()
    for count in (1, 3, 4, 4):
        joined = sweeps.work(count)
        assert len(joined.trials) == count
    assert params(joined) == alone
    assert len({one["train.learning_rate"] for one in alone}) == 4


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_every_sampler_ends_after_its_trials(sweeps: Sweeps, sampler: str) -> None:
    sweeps.write(sampler=sampler, parameters={"model.latent": [2, 4], "model.mlp.hidden": [[16], [8, 8]]}, trials=9)
    study = sweeps.work(4)
    assert states(study) == ["COMPLETE"] * 4
    if sampler == "grid":
        assert len({tuple(one.values()) for one in params(study)}) == 4


def test_a_study_is_not_continued_with_other_parameters_or_code(
    sweeps: Sweeps, params: dict[str, Any], write_params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweeps.work(1)
    params["train"]["seed"] = 5
    write_params(params)
    sweeps.write(metric="nll_effective_samples", fixed={"train.epochs": 1})
    monkeypatch.setattr(studies, "source_hash", lambda stage: f"new {stage}")
    with pytest.raises(StaleInputError) as error:
        sweeps.open(2)
    assert str(error.value) == (
        "study s: metric and params.yaml and code changed since its first trial; restore what was there, or give the "
        "study another name in sweep.yaml"
    )


def test_parameters_that_change_while_a_study_runs_end_it(
    sweeps: Sweeps, params: dict[str, Any], write_params: Any
) -> None:
    study = sweeps.open(2)
    params["train"]["epochs"] += 1
    write_params(params)
    with pytest.raises(StaleInputError, match=r"params\.yaml changed since its first trial; restore"):
        worker.work(study, sweeps.paths)
    assert states(study) == []


# ---- pruning


def test_a_trial_that_is_worse_than_the_others_is_stopped_and_what_it_started_too(sweeps: Sweeps) -> None:
    sweeps.write(pruner="median")
    sweeps.behave(
        "begin()\nepoch(1, -100.0 + number)\n"
        "if number == 5:\n"
        "    epoch(1, -1.0)  # an epoch that is trained again after a pause counts once\n"
        "    epoch(2, -300.0)\n"
        "    Path('pid').write_text(str(os.getpid()))\n"
        "    Path(os.environ['REPARAM_RESUME_DIR']).mkdir(parents=True)\n"
        "    time.sleep(600)\n"
        "epoch(2, -90.0)\nfinish()"
    )
    study = sweeps.work(6)
    assert states(study) == ["COMPLETE"] * 5 + ["PRUNED"]
    pruned = study.trials[5]
    assert pruned.intermediate_values == {1: -95.0, 2: -300.0}
    with pytest.raises(ProcessLookupError):
        os.kill(int((sweeps.paths.root / "pid").read_text()), 0)
    assert list(sweeps.paths.resume.iterdir()) == []  # nobody will go on from its checkpoints


def test_hyperband_knows_how_many_epochs_there_are(sweeps: Sweeps) -> None:
    sweeps.write(pruner="hyperband", fixed={"train.epochs": 9})
    assert sweeps.open().optuna.pruner._max_resource == 9  # type: ignore[attr-defined]
    sweeps.write(study="t", pruner="hyperband", parameters={"train.epochs": [1, 9]})
    assert sweeps.open().optuna.pruner._max_resource == "auto"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("metric", "row", "score"),
    [
        ("elbo_validation", {"validation_elbo": -9.0, "validation_loss": 8.0}, -9.0),
        ("reconstruction_validation", {"validation_elbo": -9.0, "validation_reconstruction": 7.0}, 7.0),
        ("nll", {"validation_elbo": -9.0, "validation_loss": 8.0}, 9.0),
        ("bce_validation", {"validation_loss": 8.0}, 8.0),
        ("elbo_validation", {"validation_loss": 8.0}, -8.0),
        ("elbo_validation", {"train_loss": 8.0}, None),
    ],
)
def test_the_score_of_an_epoch_is_the_metric_else_the_elbo_else_the_loss(
    sweeps: Sweeps, metric: str, row: dict[str, float], score: float | None
) -> None:
    sweeps.write(metric=metric)
    assert score_of(row, sweeps.open().plan) == score


# ---- workers that die, are interrupted, or sleep


def test_an_interrupted_trial_is_repeated_from_its_checkpoints(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    study = sweeps.open(2)
    with monkeypatch.context() as patch:
        patch.setattr(trials, "_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.work(study, sweeps.paths)
    assert states(study) == ["FAIL", "WAITING"]
    assert states(sweeps.work(2)) == ["FAIL", "COMPLETE", "COMPLETE"]
    first, second, _ = params(study)
    assert first == second
    assert [folder for *_, folder in sweeps.calls()][-2:] == [
        f"{sweeps.paths.resume}/s-0",
        f"{sweeps.paths.resume}/s-2",
    ]
    assert [trial.number for trial in study.trials] == [1, 2]


def test_the_trial_of_a_dead_worker_is_repeated_by_another(sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "HEARTBEAT", 1)
    monkeypatch.setattr(studies, "DEAD", 1)
    dead = sweeps.open(2)
    dead.renew_sampler()
    with pytest.warns(UserWarning, match="Heartbeat"):
        trial = dead.optuna.ask()
    chosen = studies.values_of(dead.plan, trial)
    dead.optuna._storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]
    started = time.monotonic()
    study = sweeps.work(2)
    assert time.monotonic() - started > 1
    assert sorted(states(study)) == ["COMPLETE", "COMPLETE", "FAIL"]
    repeated = study.optuna.get_trials()[2]
    assert (repeated.params, repeated.system_attrs["retry_history"]) == (chosen, [0])
    assert [one.state.name for one in study.trials] == ["COMPLETE", "COMPLETE"]


def test_a_worker_that_was_taken_for_dead_leaves_the_trial_to_the_other(
    sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, report = sweeps.open(1), trials._report

    def sleep(scores: Any, trial: optuna.Trial) -> None:
        if trial.number == 0 and scores:
            study.optuna.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            study.hand_on(trial.number)
        report(scores, trial)

    monkeypatch.setattr(trials, "_report", sleep)
    sweeps.behave("begin(); epoch(1, -100.0); finish()")
    worker.work(study, sweeps.paths)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert capsys.readouterr().out.splitlines()[0].endswith("another worker repeats it")


# ---- one place where DVC puts experiments down


def test_an_experiment_that_another_process_took_is_begun_again(sweeps: Sweeps) -> None:
    sweeps.behave("if Path('taken').exists(): begin(), finish()\nPath('taken').touch()")
    assert states(sweeps.work(1)) == ["COMPLETE"]
    assert [name for name, *_ in sweeps.calls()] == ["s-0", "s-0"]


def test_a_process_that_takes_the_experiment_of_another_is_ended_after_its_own(sweeps: Sweeps) -> None:
    sweeps.behave("begin(); finish(); begin('s-9'); time.sleep(600)")
    assert states(sweeps.work(1)) == ["COMPLETE"]


def test_others_begin_when_dvc_has_taken_the_experiment_and_not_before(sweeps: Sweeps) -> None:
    lock = FileLock(sweeps.paths.sweeps / "begin.lock")
    check = (
        "from filelock import FileLock, Timeout\ndef is_free():\n    try: FileLock('.sweeps/begin.lock').acquire(0)\n"
    )
    check += "    except Timeout: return False\n    return True\n"
    sweeps.behave(
        f"{check}before = is_free()\nbegin()\nwhile not is_free(): time.sleep(0.01)\nfinish(-1.0 if before else -2.0)"
    )
    assert sweeps.work(1).optuna.best_value == -2.0
    lock.acquire(timeout=0)
    lock.release()
