"""The `agman` command line: help, mistakes, and what is imported for them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image
from support.commands import Agman
from support.pages import read_page, text, with_class

from data_prep.dataset import Dataset
from data_prep.errors import InputError
from pipeline.cli import cli
from pipeline.cli.cluster import BENCHMARKS
from pipeline.evaluation.few import MEANING
from pipeline.registry.names import check_model


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_shows_every_option_with_its_meaning(agman_here: Agman, command: str) -> None:
    done = agman_here(command, "--help")
    assert done.code == 0
    assert ("--json" in done.out) == (
        command not in ("serve", "key", "submit", "bench")
    )  # a key is all that `agman key` prints
    for option in cli.commands[command].params:
        if isinstance(option, click.Option):
            assert option.opts[0] in done.out
            assert option.help, f"{command} {option.opts[0]} does not say what it means"
            has_default = isinstance(option.default, (int, str, Path)) and not option.is_flag
            assert not has_default or option.show_default, f"{command} {option.opts[0]} does not show its default"


def test_the_bare_command_shows_the_help(agman_here: Agman) -> None:
    done = agman_here()
    assert done.code == 2
    assert "Commands:" in done.err
    assert len(done.err.splitlines()) > 8
    assert "..." not in done.err.partition("Commands:")[2], "a sentence is cut off in a terminal of 80 columns"


def test_the_proposals_continue_the_command_and_the_dataset_keeps_it(agman_here: Agman, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for number in range(24):
        Image.new("RGB", (40, 40), (9 * number, 0, 0)).save(tmp_path / "p" / f"{number}.png")
    rows = [f"{number},{('red', 'blue', 'Skip')[number % 3]},{number // 2}" for number in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["file,colour,shop id", *rows]))
    given = {
        "--root": tmp_path,
        "--out": tmp_path / "out",
        "--table": tmp_path / "t.csv",
        "--missing": "Skip",
        "--group": "shop id",
        "--near-duplicates": "keep",
        "--test-share": "0.4",
        "--query-share": "0.5",
        "--triplets": "20",
        "--image-size": "32",
    }
    words = ["prep", "table", *(str(word) for pair in given.items() for word in pair)]
    done = agman_here(*words, "--overwrite")
    assert done.code == 2
    begin = "to read all of these: "
    proposed = next(line.removeprefix(begin) for line in done.err.splitlines() if line.startswith(begin))
    found = shlex.split(proposed)
    assert found == ["agman", *words, "--image", "p/{file}.png", "--attribute", "colour"]
    done = agman_here(*found[1:])
    assert done.code == 0 and f"{MEANING}; --test-share and --query-share make more" in done.err
    kept = Dataset(tmp_path / "out").info.command
    assert sorted(shlex.split(kept)) == sorted(found)
    (shown,) = with_class(read_page(tmp_path / "out" / "report.html"), "command")
    assert text(shown) == kept


def test_help_and_refusals_import_nothing_heavy() -> None:
    script = """
import sys
from pipeline.cli import run
assert run(["--help"]) == 0
for mistake in ("trian", "train --dta x", "train --data x margn=0.3", "train", "tune --data x epoch=3",
                "sample fashonai --out x", "submit -- trian", "bench x", "train --data nowhere",
                "train --data nowhere model=csm", "tune --data nowhere", "compare --data nowhere",
                "compare --data nowhere --system csm", "compare --data nowhere seed=3", "evaluate nowhere --data x",
                "evaluate models:/agman-x@champion --data nowhere", "report runs:/1 --data nowhere",
                "promote agman-x --data nowhere", "export nowhere --out x", "embed nowhere --images x --out y",
                "submit --working-dir nowhere -- train", "index nowhere", "search nowhere --query x --attribute a",
                "serve nowhere"):
    assert run(mistake.split()) == 2, mistake
heavy = [name for name in ("torch", "ray", "mlflow", "pandas", "matplotlib", "rich") if name in sys.modules]
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("agman-shirts", "a registered model is models:/agman-shirts@champion"),
        ("agman-shirts@challenger", "a registered model is models:/agman-shirts@challenger"),
        ("models/agman-shirts@champion", "a registered model is models:/agman-shirts@champion"),
        ("models:/agman-shirts", "give models:/NAME@ALIAS or models:/NAME/3"),
        (f"runs/{'0a' * 16}", f"a run's model is runs:/{'0a' * 16}"),
        (f"runs/{'0a' * 16}/model", f"a run's model is runs:/{'0a' * 16}"),
        ("training", "a checkpoint is in training/checkpoints/step-00000008-b"),
        ("training/checkpoints", "a checkpoint is in training/checkpoints/step-00000008-b"),
        ("nowhere", "give models:/NAME@ALIAS, runs:/RUN_ID, a checkpoint folder or a published .pth.tar file"),
        ("nowhere.pth.tar", "nowhere.pth.tar: no such file"),
    ],
)
def test_a_wrong_name_of_a_model_is_refused_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in ("step-00000004-a", "step-00000008-b"):
        (tmp_path / "training" / "checkpoints" / step).mkdir(parents=True)
        (tmp_path / "training" / "checkpoints" / step / "model.json").touch()
    with pytest.raises(InputError, match=re.escape(hint) + "$") as refused:
        check_model(typed)
    assert str(refused.value).startswith(f"{typed}: ")
    check_model("training/checkpoints/step-00000004-a")


@pytest.mark.parametrize("model", ["models:/a@champion", "models:/a/3", "models:/m-0123", "runs:/1", "s3://bucket/a"])
def test_forms_that_only_a_store_can_judge_pass(model: str) -> None:
    check_model(model)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("sampel",), "No such command 'sampel'. Did you mean 'sample'?"),
        (("sample", "fashonai", "--out", "x"), "'fashonai' is not"),
        (("sample", "fashionai", "--out", "x", "--imges", "4"), "No such option '--imges'. Did you mean '--images'?"),
        (("sample", "fashionai", "--out", "x", "--images", "none"), "'none' is not a valid integer"),
        (("sample", "fashionai"), "Missing option '--out'"),
        (("prep", "fashionai", "--root", "nowhere", "--out", "x"), "nowhere: no such folder"),
        (("prep", "fashionai", "--root", ".", "--out", "x"), "not FashionAI's layout"),
        (("prep", "deepfashion", "--root", ".", "--out", "x"), "not DeepFashion's layout"),
        (("prep", "zappos50k", "--root", ".", "--out", "x"), "not UT-Zap50K's layout"),
        (("prep", "darn", "--root", ".", "--out", "x"), "not DARN's layout"),
        (("prep", "darn", "--root", ".", "--out", "x", "--attribute", "a"), "are for table, not for darn"),
        (("prep", "table", "--root", ".", "--out", "x"), "give --table FILE, or --levels"),
        (("prep", "table", "--root", ".", "--out", "x", "--table", "no.csv"), "no.csv: no such file"),
        (
            ("prep", "darn", "--root", ".", "--out", "x", "--crop-boxes"),
            "are for deepfashion, not for darn",
        ),
        (("prep", "deepfashion", "--root", ".", "--out", "x", "--annotation", "fine"), "no Anno_fine/train_attr.txt"),
        (("prep", "deepfashion", "--root", ".", "--out", "x", "--annotation", "rough"), "'rough' is not one of"),
        (("prep", "fashionai", "--root", ".", "--out", "x", "--max-rejects", "2"), "2.0 is not in the range 0<=x<=1"),
        (("prep", "fashionai", "--root", ".", "--out", "x", "--triplets", "10000000000"), "is not in the range"),
        (("train", "--data", "nowhere"), "nowhere: not a prepared dataset"),
        (("train", "--data", "nowhere", "margn=0.3"), "did you mean 'margin'?"),
        (("train", "--data", "nowhere", "--model", "csn"), "No such option '--model'"),
        (("train", "--data", "nowhere", "--workers", "0"), "'0': at least 1, and MIN not above MAX"),
        (("tune", "--data", "nowhere", "--space", "margin"), "did you mean 'margins'?"),
        (("tune", "--data", "nowhere", "lr=0.1"), "the space 'margins' varies it"),
        (("train",), "Missing option '--data'"),
        (("evaluate", "models:/x@y", "--data", "nowhere", "--split", "train"), "'train' is not one of"),
    ],
)
def test_a_mistake_is_answered_in_one_line_and_leaves_nothing(
    agman_here: Agman, tmp_path: Path, typed: tuple[str, ...], message: str
) -> None:
    done = agman_here(*typed)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    last = done.err.strip().splitlines()[-1]
    assert last.startswith("agman: ")
    assert message in last
    assert done.out == ""
    assert not list(tmp_path.iterdir())


def test_a_bar_that_nobody_reads_holds_nothing_up() -> None:
    """As in `agman train 2>&1 | head`; tqdm alone would wait for its own lock for ever."""
    script = """
import sys
from pipeline.common.console import bar_of
bar = bar_of("steps", 100)
bar.mininterval = 0
print(sys.stdin.readline(), flush=True)  # nobody reads stderr from here on
for _ in range(100):
    bar.update(1)
bar.close()
print("done", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        process.stderr.close()
        try:
            out, _ = process.communicate("go\n", timeout=60)
        finally:
            process.kill()
    assert out.split() == ["go", "done"]


def test_every_benchmark_can_be_named_and_run() -> None:
    folder = Path(__file__).parents[3] / "benchmarks"
    assert sorted(file.stem for file in folder.glob("*.py") if file.stem not in ("__init__", "common")) == BENCHMARKS
    assert all("\ndef main() -> None:\n" in (folder / f"{name}.py").read_text(encoding="utf-8") for name in BENCHMARKS)
