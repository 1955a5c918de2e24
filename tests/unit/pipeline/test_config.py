"""Configuration: the paper's defaults, presets, and messages about mistakes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.cli.train import show_settings
from pipeline.config.presets import PRESETS
from pipeline.config.schema import TrainConfig, allowed, load_config, make_config, without_effect
from pipeline.reports.model.page import commands
from pipeline.reports.study.page import as_settings
from pipeline.training.build import build_model, fitted, resolved


def test_the_defaults_are_the_papers_recipe() -> None:
    config = TrainConfig()
    assert (config.model, config.backbone, config.margin) == ("agman", "resnet50", 0.2)
    assert (config.batch_size, config.epochs, config.lr) == (16, 50, 1e-4)
    assert (config.lr_decay, config.lr_decay_epochs) == (0.9, 3)


def test_settings_that_need_values_are_named_and_the_paper_has_none() -> None:
    assert TrainConfig().needing_values == []
    asked = load_config(None, ["batches=balanced", "proxy_weight=2"])
    assert asked.needing_values == ["batches=balanced", "proxy_weight=2"]


def test_every_setting_says_what_it_means() -> None:
    assert all(field.description for field in TrainConfig.model_fields.values())


def test_a_weights_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet.pth").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert load_config(None, ["weights=resnet.pth"]).weights == str(tmp_path / "resnet.pth")
    assert load_config(None, ["weights=IMAGENET1K_V1"]).weights == "IMAGENET1K_V1"


def test_none_is_read_wherever_a_type_admits_it_and_nowhere_else() -> None:
    """Every setting whose default is None takes it; for others it is a wrong value, or a choice like any other."""
    for name, field in TrainConfig.model_fields.items():
        if field.default is None:
            assert getattr(load_config(None, [f"{name}=none"]), name) is None
    with pytest.raises(InputError, match="epochs=none: input should be a valid integer"):
        load_config(None, ["epochs=none"])


def test_settings_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("margin: 0.4\nepochs: 7\nweights: null\n")
    config = load_config(file, ["epochs=3", "classify=false", "image_size=none", "sa_kernel=1"])
    assert config.sa_kernel == 1
    assert (config.margin, config.epochs, config.classify, config.image_size) == (0.4, 3, False, None)


def test_the_file_overrides_the_preset_and_key_value_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("clip_norm: 0.4\nepochs: 7\nbatch_size: 24\n")
    config = load_config(file, ["epochs=3", "weights=none"], "strong")
    assert (config.lr, config.proxy_weight, config.batches) == (2e-3, 1.0, "balanced")  # the preset's
    assert (config.clip_norm, config.batch_size) == (0.4, 24)  # the file's, over the preset's 48
    assert (config.epochs, config.weights) == (3, None)  # over both
    assert config.lr_decay_epochs == TrainConfig().lr_decay_epochs


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_complete_recipe_and_describes_itself(
    name: str, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = PRESETS[name]
    config = load_config(None, [], name)
    assert config == make_config(preset.settings)
    for setting, value in preset.settings.items():
        assert getattr(config, setting) == value
    offline = config.model_copy(update={"weights": None})
    with torch.device("meta"):
        model = build_model(resolved(offline), dataset)
    assert model.embedding_dim == preset.settings["embedding_dim"]
    show_settings(config, name)
    said = capsys.readouterr().out
    assert f"preset {name}: {preset.about}" in said.replace("\n", " ").replace("  ", " ")
    assert "loss_weighting" in said


@pytest.mark.parametrize(
    ("name", "score"), [("paper-fashionai", "62.88"), ("paper-deepfashion", "8.98"), ("paper-zappos50k", "93.32")]
)
def test_a_published_recipe_states_its_score_and_is_the_published_codes(name: str, score: str) -> None:
    config = load_config(None, [], name)
    assert score in PRESETS[name].about
    assert config.weights == "IMAGENET1K_V1"
    assert (config.batch_size, config.lr, config.margin, config.loss_weighting) == (16, 1e-4, 0.2, "published")
    assert config.classify is (False if name == "paper-zappos50k" else None)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("fahionai", "--preset fahionai: no such preset; did you mean 'paper-fashionai'?"),
        ("Strnog", "did you mean 'strong'?"),
        ("xyz", "no such preset; known: paper-fashionai, paper-deepfashion"),
    ],
)
def test_an_unknown_preset_is_answered_with_the_nearest(typed: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, [], typed)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("margn=0.3", "unknown setting 'margn'; did you mean 'margin'?"),
        ("xyz=1", "unknown setting 'xyz'; known: model, backbone"),
        ("epochs", "KEY=VALUE"),
        ("epochs=many", "epochs=many: input should be a valid integer"),
        ("epochs=0", "epochs=0: input should be greater than or equal to 1"),
        ("precision=fp8", "precision=fp8: input should be 'fp32' or 'bf16'"),
        ("margin=nan", "margin=nan"),
        ("batches=even", "batches=even: input should be 'triplets' or 'balanced'"),
        ("temperature=0", "temperature=0: input should be greater than 0"),
        ("ema=1", "ema=1: input should be less than 1"),
        ("mining=hard", "setting 'mining' is gone: take batches=balanced with pair_loss=semi_hard_triplet"),
        ("info_nce_weight=1", "is gone: take batches=balanced with pair_loss=supervised_contrastive"),
        ("loss_weighting=learnt", "loss_weighting=learnt: input should be 'fixed', 'learned' or 'published'"),
        ("lr=inf", "lr=inf"),
        ("parts=4", "setting 'parts' is now called 'micro_batches'"),
        ("fused=true", "unknown setting 'fused'"),
        ("batch_norm=per_part", "batch_norm=per_part: input should be 'per_micro_batch', 'sync' or 'frozen'"),
    ],
)
def test_a_wrong_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        load_config(None, [setting])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"- a\n- b\n", "KEY: VALUE"), (b"a: [", "not a YAML"), (b"\xff\xfe\x00", "not a YAML")]
)
def test_a_bad_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(file, [])
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml", [])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("epochs: 3\nlr: 1e-3\nepochs: 4\n", " line 3: .*epochs is given twice"),
        ("epochs: [3\n", " line 2: not a YAML file"),
        ("epochs: three\n", ": epochs=three: input should be a valid integer"),
        ("epoch: 3\n", ": unknown setting 'epoch'; did you mean 'epochs'"),
        ("preset: strong\n", ": preset is an option of the command: --preset strong"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_the_file(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=f"{file}{fault}"):
        load_config(file, [])


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        ("batches=balanced max_triplets=9", "batches=balanced"),
        ("images_per_value=4", "batches=triplets"),
        ("temperature=0.2", "batches=triplets"),
        ("batches=balanced temperature=0.2 pair_loss=multi_similarity", "pair_loss=multi_similarity"),
        ("batches=balanced margin=0.2", "pair_loss=supervised_contrastive"),
        ("class_weight=0.5 loss_weighting=learned", "loss_weighting=learned"),
        ("label_smoothing=0.1", "proxy_weight=0.0"),
        ("label_smoothing=0.1 proxy_weight=1 proxy_loss=anchor", "proxy_loss=anchor"),
        ("weight_decay=0.1", "optimizer=adam"),
        ("lr_decay=0.5 schedule=cosine", "schedule=cosine"),
        ("epochs=3 max_steps=40", "max_steps=40"),
    ],
)
def test_a_setting_without_effect_is_refused_with_the_cause(settings: str, cause: str) -> None:
    with pytest.raises(InputError, match=f"has no effect with {cause}: change one of them"):
        load_config(None, settings.split())
    load_config(None, settings.split(), varied=[cause.partition("=")[0]])


def test_a_file_may_hold_every_setting_and_an_override_may_silence_those_of_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(TrainConfig().model_dump_json())
    assert load_config(file, []) == TrainConfig()
    assert load_config(None, ["batches=triplets", "max_triplets=9"], "strong").max_triplets == 9
    file.write_text("temperature: 0.2\n")
    with pytest.raises(InputError, match=r"temperature=.* has no effect with batches=triplets"):
        load_config(file, [])


@pytest.mark.parametrize("change", ["", "max_steps=30", "batches=balanced", "optimizer=adamw", "schedule=cosine"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_command_on_a_models_page_is_one_that_trains_it(name: str, change: str, dataset: Dataset) -> None:
    trained = fitted(resolved(load_config(None, change.split(), name)), dataset, 1)
    line = shlex.split(commands("MODEL", dataset, Path("page.html"), "valid", trained.model_dump())[1])
    assert line[:2] == ["agman", "train"]
    again = resolved(load_config(None, line[4:]))
    read = trained.model_dump().keys() - without_effect(trained)
    assert {key: getattr(again, key) for key in read} == {key: getattr(trained, key) for key in read}


def test_a_trials_setting_on_a_studys_page_leaves_out_what_has_no_effect_in_it() -> None:
    setting = {"proxy_weight": 0.0, "label_smoothing": 0.1, "temperature": 0.2, "ema": None}
    assert as_settings(setting) == "proxy_weight=0.0 temperature=0.2 ema=none"
    assert as_settings(setting | {"proxy_weight": 0.5}).split()[1] == "label_smoothing=0.1"


def test_a_key_is_not_given_two_values() -> None:
    assert load_config(None, ["epochs=3", "epochs=3"]).epochs == 3
    with pytest.raises(InputError, match="model is given twice: isln and csn"):
        load_config(None, ["model=isln", "model=csn"])


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("margin", "number, ≥ 0, ≤ 2"),
        ("lr", "number, > 0"),
        ("embedding_dim", "whole number, ≥ 1"),
        ("precision", "fp32 | bf16"),
        ("compile", "true | false"),
        ("weights", "text"),
        ("stride", "16 | 32"),
    ],
)
def test_allowed_values_are_described(key: str, words: str) -> None:
    assert allowed(key) == words
