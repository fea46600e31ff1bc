import json
from typing import Any

import pytest
from conftest import SMALL

from reparam.errors import ParamsError
from reparam.metrics import METRICS
from reparam.paths import Paths
from reparam.sweep.plan import Plan, Range, read_plan, spell

RATE, LATENT = "train.learning_rate", "model.latent"


def plan(project: Paths, **changes: Any) -> Plan:
    file = project.root / "sweep.yaml"
    file.write_text(json.dumps({"study": "s", "trials": 3, "parameters": {LATENT: [2, 4]}, **changes}))
    return read_plan(file, project.params)


def problems(project: Paths, **changes: Any) -> list[str]:
    with pytest.raises(ParamsError) as error:
        plan(project, **changes)
    file, *found = str(error.value).splitlines()
    assert file == f"{project.root}/sweep.yaml: {len(found)} problem{'s' if len(found) > 1 else ''}"
    return [line.strip() for line in found]


def test_what_is_left_out_has_a_default(project: Paths) -> None:
    found = plan(project)
    assert (found.metric, found.direction, found.stage) == ("elbo_validation", "maximize", "evaluate")
    assert (found.file.sampler, found.file.seed, found.file.pruner, found.trials) == ("tpe", 0, "none", 3)
    assert found.epochs == SMALL["train"]["epochs"]


def test_the_command_line_has_the_last_word_on_the_number_of_trials(project: Paths) -> None:
    plan(project)
    assert read_plan(project.root / "sweep.yaml", project.params, 5).trials == 5


def test_all_mistakes_are_listed_with_their_paths(project: Paths) -> None:
    assert problems(
        project,
        parameters={
            "train.learning_rat": [0.1],
            LATENT: [2, 0.5],
            RATE: {"low": 0.1, "high": 0.01},
            "train.epochs": "many",
            "objective.beta": {"low": 0.0, "high": 1.0, "log": True},
            "train.batch_size": {"low": 16, "hihg": 64},
        },
    ) == [
        "parameters.train.learning_rat: no such parameter; did you mean 'train.learning_rate'?",
        "parameters.model.latent: wanted a whole number, found 0.5",
        "parameters.train.learning_rate: wanted low at most high, found 0.1 and 0.01",
        "parameters.train.epochs: wanted a list of choices, or low and high (with log or step), found 'many'",
        "parameters.objective.beta: log: wanted low above 0 and no step",
        "parameters.train.batch_size.high: missing",
        "parameters.train.batch_size.hihg: unknown, found 64",
    ]


def test_fixed_values_are_checked_as_well(project: Paths) -> None:
    assert problems(project, fixed={LATENT: 2, "train.epoch": 2, "train.seed": -1}) == [
        "fixed.model.latent: is also among `parameters`; remove one of them",
        "fixed.train.epoch: no such parameter; did you mean 'train.epochs'?",
        "fixed.train.seed: wanted at least 0, found -1",
    ]


def test_a_study_needs_a_name_that_experiments_can_have(project: Paths) -> None:
    (found,) = problems(project, study="a b")
    assert found.startswith("study: wanted text of the form ")


def test_without_a_number_of_trials_only_a_grid_ends(project: Paths) -> None:
    assert problems(project, trials=None) == ["trials: missing; wanted the number of trials, here or by --n-trials"]
    grid = plan(project, trials=None, sampler="grid", parameters={LATENT: [2, 4], "train.seed": {"low": 0, "high": 2}})
    assert grid.trials == 6
    assert plan(project, trials=5, sampler="grid").trials == 2


def test_a_grid_has_a_number_of_values(project: Paths) -> None:
    assert problems(project, sampler="grid", parameters={RATE: {"low": 0.1, "high": 0.2}}) == [
        f"parameters.{RATE}: wanted choices, or a step without log: a grid has a number of values"
    ]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"low": 2, "high": 5}, (2, 3, 4, 5)),
        ({"low": 2, "high": 7, "step": 2}, (2, 4, 6)),
        ({"low": 0.1, "high": 0.4, "step": 0.1}, (0.1, 0.2, 0.3, 0.4)),
    ],
)
def test_the_values_of_a_range(given: dict[str, Any], wanted: tuple[float, ...]) -> None:
    assert Range.model_validate(given).grid == wanted


def test_whole_numbers_are_ends_of_a_range_of_numbers_where_the_parameter_is_one(project: Paths) -> None:
    found = plan(project, parameters={"objective.beta": {"low": 1, "high": 4}, LATENT: {"low": 1, "high": 4}})
    assert [one.is_whole for one in found.space.values() if isinstance(one, Range)] == [False, True]


@pytest.mark.parametrize("metric", ["kl", "pca_density", "no_such"])
def test_a_metric_of_which_neither_more_nor_less_is_better_is_refused(project: Paths, metric: str) -> None:
    (found,) = problems(project, metric=metric)
    assert found.startswith("metric: wanted one that is better high or low (elbo_validation, elbo, nll, ")
    assert found.endswith(f"found {metric!r}")


@pytest.mark.parametrize(
    ("metric", "stage", "direction"),
    [
        ("best_validation_loss", "train", "minimize"),
        ("elbo", "evaluate", "maximize"),
        ("bce_validation", "evaluate", "minimize"),
        ("served_elbo", "export", "maximize"),
    ],
)
def test_a_trial_ends_with_the_stage_that_measures_the_metric(
    project: Paths, metric: str, stage: str, direction: str
) -> None:
    found = plan(project, metric=metric)
    assert (found.stage, found.direction) == (stage, direction)
    assert metric.removesuffix("_validation") in METRICS


def test_without_images_that_validate_there_is_neither_their_score_nor_a_pruner(
    project: Paths, params: dict[str, Any], write_params: Any
) -> None:
    params["preprocess"]["validation"] = 0
    write_params(params)
    assert problems(project, pruner="median") == [
        "metric: elbo_validation needs images that validate, found preprocess.validation 0 in params.yaml",
        "pruner: median needs images that validate, found preprocess.validation 0 in params.yaml",
    ]


def test_what_differs_from_params_yaml_is_set_and_nothing_else(project: Paths) -> None:
    same = SMALL["train"]["batch_size"]
    found = plan(
        project,
        parameters={LATENT: [2, SMALL["model"]["latent"]], "model.mlp.hidden": [[16], [8, 8]]},
        fixed={"train.batch_size": same, "train.seed": 7},
    )
    assert found.overrides({LATENT: 2, "model.mlp.hidden": [8, 8]}) == [
        "train.seed=7",
        "model.latent=2",
        "model.mlp.hidden=[8,8]",
    ]
    assert found.overrides({LATENT: SMALL["model"]["latent"], "model.mlp.hidden": [16]}) == ["train.seed=7"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (1e-05, "1e-05"),
        ("mlp", "'mlp'"),
        ("it's a, b", r"'it\'s a, b'"),
        (["a", 1, [2]], "['a',1,[2]]"),
    ],
)
def test_a_value_is_spelled_as_hydra_reads_it(value: Any, text: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert spell(value) == text
    (override,) = OverridesParser.create().parse_overrides([f"a.b={text}"])
    assert override.value() == value


def test_a_sweep_that_is_not_there_is_named(project: Paths) -> None:
    with pytest.raises(ParamsError) as error:
        read_plan(project.root / "no.yaml", project.params)
    assert str(error.value) == f"{project.root}/no.yaml: not found; docs/how-to/sweeps.md shows one"
