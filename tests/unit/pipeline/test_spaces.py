"""Search spaces: ours yield trainings and start from the paper's recipe; whatever is wrong with a user's is named."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch

import agman
import tune_spaces
from data_prep.errors import InputError
from pipeline.config.presets import PRESETS, PUBLISHED
from pipeline.config.schema import TrainConfig, make_config
from pipeline.training.build import MODEL_OPTIONS, resolved
from pipeline.tuning.spaces import draw, find_space, refuse_varied, space_names

SAMPLES = 25
MOST_ATTRIBUTES = 8
NAMES = space_names()
STRONG = [name for name in NAMES if name != "margins"]
"""Spaces around the preset `strong`; `margins` is around the paper's recipe."""


def test_the_spaces_are_these() -> None:
    assert NAMES == ["batches", "embedding", "full", "losses", "margins", "recipe"]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_space_draws_makes_a_training(name: str) -> None:
    space = find_space(name)
    samples = draw(space, SAMPLES, seed=1)
    assert len(samples) == SAMPLES and len({str(sample) for sample in samples}) > SAMPLES / 4
    for sample in samples:
        assert set(sample) <= space.varied
        config = make_config(TrainConfig().model_dump() | sample)
        options = {option: getattr(config, option) for option in MODEL_OPTIONS}
        _built(config.model, config.backbone, stride=config.stride)
        # A network of any size has the same width and kernels, and the smallest is built in no time.
        model = _built(config.model, "tiny", **{k: v for k, v in options.items() if v is not None})
        assert model.embedding_dim >= MOST_ATTRIBUTES
        agman.TripletObjective(
            model,
            config.margin,
            agman.LossWeights(config.loss_weighting, config.triplet_weight, config.class_weight),
            proxy_weight=config.proxy_weight,
        )


@cache
def _built(model: str, backbone: str, **options: Any) -> agman.RetrievalModel:
    """Without memory for the weights: what the sizes cannot be shows all the same, and 60 ResNets are a lot."""
    with torch.device("meta"):
        return agman.build(model, n_attributes=MOST_ATTRIBUTES, backbone=backbone, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_space_starts_from_its_recipe(name: str) -> None:
    space = find_space(name)
    assert space.start == importlib.import_module(f"tune_spaces.{name}").START
    if name in STRONG:
        strong = make_config(PRESETS["strong"].settings)
        whole = strong.model_dump() | {"sa_kernel": agman.registry.options_of("agman")["sa_kernel"]}
        assert {key: whole[key] for key in space.start} == space.start
    else:
        assert resolved(make_config(space.start)) == resolved(TrainConfig()), "the defaults are the paper's recipe"
        shared = (space.start.keys() & PUBLISHED.keys()) - {"loss_weighting"}
        assert {key: space.start[key] for key in shared} == {key: PUBLISHED[key] for key in shared}
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial(space.start)
    trial = study.ask()
    space.define(trial)
    assert trial.params == space.start, "nothing is left to chance, and nothing is not asked for"


def test_the_published_weights_are_the_starts_equal_ones_but_for_a_factor() -> None:
    assert PUBLISHED["loss_weighting"] == "published"
    start = TrainConfig()
    ratios = set()
    for triplet, classes in ((0.3, 0.0), (0.0, 0.7), (0.2, 0.5)):
        losses = torch.tensor(triplet), torch.tensor(classes)
        published, nothing = agman.LossWeights("published"), torch.zeros(())
        ours = agman.LossWeights(start.loss_weighting, 1.0, start.class_weight)
        above = published(*losses) - published(nothing, nothing)
        ratios.add(round(float(above / ours(*losses)), 4))
    assert ratios == {1.3591}


@pytest.mark.parametrize("name", NAMES)
def test_a_space_says_why_and_what_it_costs(name: str) -> None:
    module = importlib.import_module(f"tune_spaces.{name}")
    assert module.__doc__ and "Why: " in module.__doc__ and "Expected cost: " in module.__doc__
    about = find_space(name).about
    assert about == module.__doc__.splitlines()[0]
    page = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    if name != "full":
        assert all(f"`{key}`" in row for key in find_space(name).varied), "docs/tuning.md names what varies"


@pytest.mark.parametrize("name", NAMES)
def test_a_space_imports_nothing_but_optuna(name: str) -> None:
    tree = ast.parse(Path(tune_spaces.__path__[0], f"{name}.py").read_text(encoding="utf-8"))
    froms = {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert froms <= {"__future__", "optuna", "tune_spaces"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]


def test_full_varies_what_the_others_do() -> None:
    others = [find_space(name) for name in STRONG if name != "full"]
    full = find_space("full")
    assert full.varied == frozenset().union(*(space.varied for space in others)) - {"backbone"}
    for space in others:
        assert {key: full.start.get(key, "tf_efficientnet_lite0") for key in space.start} == space.start


@pytest.mark.parametrize("name", ["batches", "losses", "full"])
def test_a_loss_has_its_own_settings_only(name: str) -> None:
    samples = draw(find_space(name), SAMPLES)
    assert len({sample["pair_loss"] for sample in samples}) == 3
    assert all(("temperature" in one) == (one["pair_loss"] == "supervised_contrastive") for one in samples)
    assert all(("margin" in one) == (one["pair_loss"] == "semi_hard_triplet") for one in samples)


def test_trying_a_space_out_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    before = optuna.logging.get_verbosity()
    find_space("full")
    assert optuna.logging.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fixed", ["lr=0.1", "lr", " lr = 1 "])
def test_a_setting_that_varies_cannot_be_fixed(fixed: str) -> None:
    space = find_space("margins")
    refuse_varied(space, ["epochs=3", "backbone=resnet18"])
    with pytest.raises(InputError) as error:
        refuse_varied(space, ["epochs=3", fixed])
    assert str(error.value) == "lr=...: the space 'margins' varies it; leave it out or take another space"


def test_a_setting_that_only_some_trials_have_cannot_be_fixed() -> None:
    with pytest.raises(InputError, match=r"margin=\.\.\.: the space 'full' varies it"):
        refuse_varied(find_space("full"), ["margin=0.3"])


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module `mine` into the working folder, which is not on Python's path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setitem(sys.modules, "mine", sys)  # so that the real one is forgotten after the test
    del sys.modules["mine"]

    def write(body: str, name: str = "mine:space") -> str:
        (tmp_path / "mine.py").write_text(body, encoding="utf-8")
        return name

    return write


OWN = '''"""Widths that
the service can hold.

Further words.
"""
START = {"embedding_dim": 128}

def space(trial):
    if trial.suggest_int("embedding_dim", 32, 128, step=32) > 64:
        trial.suggest_float("lr", 1e-4, 1e-2, log=True)

def rates(trial):
    trial.suggest_float("lr", 1e-4, 1e-2, log=True)
'''


def test_a_users_own_space_in_the_working_folder(own: Callable[[str], str]) -> None:
    space = find_space(own(OWN))
    assert (space.name, space.start) == ("mine:space", {"embedding_dim": 128})
    assert space.varied == {"embedding_dim", "lr"}
    assert space.about == "Widths that the service can hold."
    with pytest.raises(InputError, match=r"lr=\.\.\.: the space 'mine:space' varies it"):
        refuse_varied(space, ["lr=1"])


def test_a_users_own_space_needs_no_start_and_no_words(own: Callable[[str], str]) -> None:
    space = find_space(
        own("class Of:\n  def __call__(self, t): t.suggest_int('epochs', 1, 3)\nwidths = Of()", "mine:widths")
    )
    assert (space.start, space.varied, space.about) == ({}, {"epochs"}, "")


def test_the_guides_example_of_an_own_space_works(own: Callable[[str], str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "tuning.md").read_text(encoding="utf-8")
    (example,) = (block for block in page.split("```") if block.startswith("python\n# my_spaces.py\n"))
    space = find_space(own(example.removeprefix("python\n"), "mine:narrow"))
    assert space.varied == {"embedding_dim", "lr"} == space.start.keys()


def test_a_module_of_ours_may_be_named_like_a_users_own() -> None:
    assert find_space("tune_spaces.margins:space").varied == find_space("margins").varied


DEF = "def space(trial): "
RATE = "trial.suggest_float('lr', 1e-4, 1e-2)"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("margin", "--space margin: no such search space; did you mean 'margins'? Your own: --space MODULE:FUNCTION"),
        ("xyz", "no such search space; known: batches, embedding, full, losses, margins, recipe"),
        ("", "no such search space"),
        ("no_such_module:space", "--space no_such_module:space: there is no module 'no_such_module' in /"),
        ("mine.py:space", "there is no module 'mine.py' in"),
        (".mine:space", "cannot be imported: TypeError"),
        ("mine:", "a space of your own is given as MODULE:FUNCTION"),
        (":space", "a space of your own is given as MODULE:FUNCTION"),
        ("mine:spaces", "--space mine:spaces: mine has no 'spaces'; did you mean 'space'?"),
        ("mine:START", "'START' is a dict; give a function of an optuna.Trial"),
        ("mine:rates", "START has 'embedding_dim', which the space does not suggest; known: lr"),
    ],
)
def test_a_space_that_is_not_there_is_named(own: Callable[[str], str], name: str, message: str) -> None:
    own(OWN)
    _refused(name, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "mine has no 'space'; define it: def space(trial): ..."),
        ("import no_such_package", "mine cannot be imported: ModuleNotFoundError: No module named 'no_such_package' ("),
        ("\n1 / 0", "mine cannot be imported: ZeroDivisionError: division by zero ("),
        ("def space(:", "mine cannot be imported: SyntaxError: invalid syntax (mine.py, line 1)"),
        ("raise SystemExit(3)", "mine cannot be imported: SystemExit: 3 ("),
        (f"START = [1]\n{DEF}{RATE}", "START is a list; make it a dict of settings, or leave it out"),
        (f"{DEF}pass", "it suggests nothing; have it call trial.suggest_float and the like"),
        (f"{DEF}return {RATE}", "it returns a float, which nothing reads; have it suggest and return None"),
        (f"\n{DEF}1 / 0", "it failed: ZeroDivisionError: division by zero ("),
        ("def space(): pass", "it failed: TypeError: space() takes 0 positional arguments but 1 was given"),
        (f"{DEF}trial.suggest_float('lr', 2, 1)", "it failed: ValueError: "),
        (f"{DEF}trial.suggest_float('margn', 0, 1)", "it suggests unknown setting 'margn'; did you mean 'margin'?"),
        (f"{DEF}trial.suggest_float('margin', 5, 9)", "it suggests margin="),
        (
            f"{DEF}trial.suggest_float('margin', 0, 2.0001)",
            "it suggests margin=2.0001: input should be less than or equal to 2",
        ),
        (f"{DEF}trial.suggest_float('batch_size', 8, 9)", "input should be a valid integer"),
        (
            f"{DEF}trial.suggest_categorical('precision', ['fp32', 'fp8'])",
            "it suggests precision=fp8: input should be 'fp32' or 'bf16'",
        ),
        (
            f"START = {{'margn': 0.2}}\n{DEF}trial.suggest_float('margin', 0, 1)",
            "START has 'margn', which the space does not suggest; did you mean 'margin'?",
        ),
        (f"START = {{1: 0.2}}\n{DEF}{RATE}", "START has 1, which the space does not suggest; known: lr"),
        (
            "START = {'batch_size': 8, 'lr': 1e-3}\ndef space(trial):\n"
            f"    if trial.suggest_int('batch_size', 8, 16) > 8:\n        {RATE}",
            "START has 'lr', which the space does not suggest beside START's other settings; leave it out",
        ),
        (
            f"START = {{'lr': 0.1}}\n{DEF}{RATE}",
            "START: it failed: UserWarning: Fixed parameter lr with value 0.1 is out of range",
        ),
        (
            f"START = {{'sa_kernel': 5}}\n{DEF}trial.suggest_categorical('sa_kernel', [1, 3])",
            "START: it failed: ValueError: ",
        ),
    ],
)
def test_what_is_wrong_with_a_space_is_one_clear_line(own: Callable[[str], str], body: str, message: str) -> None:
    _refused(own(body), message)


def test_the_line_at_fault_is_named(own: Callable[[str], str], tmp_path: Path) -> None:
    _refused(own("def space(trial):\n    trial.suggest_float('lr', 2, 1)"), f" ({tmp_path / 'mine.py'}, line 2)")


def _refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        find_space(name)
    said = str(error.value)
    assert said.startswith(f"--space {name}: ") and message in said
    assert "\n" not in said
