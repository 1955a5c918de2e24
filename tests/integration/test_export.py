"""Exported models against the eager ones: ONNX files in onnxruntime, programs in a process without this package."""

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch

import agman
from agman import export
from agman.csn import CSN
from agman.registry import MODELS

SIZE = 40  # not a multiple of 16, so that maps are rounded up
NAMES = ["skirt", "sleeve", "collar"]
LOAD_ELSEWHERE = """
import sys, torch
for name in sys.argv[1:]:
    program = torch.export.load(f"{name}.pt2")
    inputs, outputs = torch.load(f"{name}.pt", weights_only=True)
    for images, expected in zip(inputs, outputs):
        difference = (program.module()(images) - expected).abs().max()
        assert difference <= 1e-5, f"{name}: {difference}"
assert not {"agman", "torchvision"} & set(sys.modules)
"""


def new_model(name="agman", **arguments):
    """Return a model with batch norm as after training: a fresh layer is nearly the identity, and hides mistakes."""
    torch.manual_seed(1)
    arguments = {"n_attributes": 3, "embedding_dim": 11, "backbone": "tiny"} | arguments
    model = agman.build(name, **arguments).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def csn():
    """Return the smallest model, in evaluation mode. It is shared and must not be changed."""
    return new_model("csn")


@torch.no_grad()
def batches(model, sizes=(1, 7)):
    """Return batches of images, and the eager model's embeddings of each."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(size, 3, SIZE, SIZE, generator=generator) for size in sizes]
    return inputs, [model.embed_all(images) for images in inputs]


def difference_in_onnxruntime(path, model):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = [session.run(["embeddings"], {"images": images.numpy()})[0] for images in batches(model)[0]]
    return max(float(abs(f - e.numpy()).max()) for f, e in zip(found, batches(model)[1], strict=True))


def assert_no_path_of_this_machine(content):
    for path in (Path(export.__file__).parent, Path(torch.__file__).parent, Path.home()):
        assert str(path).encode() not in content
    assert b".py" not in content


def test_programs_load_without_this_package_and_without_running_pickled_code(tmp_path):
    """One process loads them all."""
    for name in MODELS:
        model = new_model(name)
        exported = export.save_program(model, tmp_path / f"{name}.pt2", SIZE, NAMES)
        assert exported.path == tmp_path / f"{name}.pt2"
        assert 0 <= exported.difference <= 1e-5
        torch.save(batches(model), tmp_path / f"{name}.pt")
    command = [sys.executable, "-I", "-c", LOAD_ELSEWHERE, *MODELS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    for name in MODELS:
        with zipfile.ZipFile(tmp_path / f"{name}.pt2") as archive:
            contents = {path.split("/", 1)[1]: archive.read(path) for path in archive.namelist()}
        for config in ("weights/model_weights", "constants/model_constants"):
            tensors = json.loads(contents[f"data/{config}_config.json"])["config"]
            assert not any(tensor["use_pickle"] for tensor in tensors.values())
        torch.load(io.BytesIO(contents["data/sample_inputs/model.pt"]), weights_only=True)
        assert_no_path_of_this_machine(contents["models/model.json"])


@pytest.mark.parametrize("name", MODELS)
def test_onnx_files_give_the_models_embeddings(name, tmp_path):
    model = new_model(name)
    exported = export.export_onnx(model, tmp_path / "model.onnx", SIZE, NAMES)
    assert exported.path == tmp_path / "model.onnx" and 0 < exported.difference <= 1e-5
    assert difference_in_onnxruntime(exported.path, model) <= 1e-5

    proto = onnx.load(exported.path)
    onnx.checker.check_model(proto, full_check=True)
    (images,), (embeddings,) = proto.graph.input, proto.graph.output
    assert (images.name, embeddings.name) == ("images", "embeddings")
    for tensor, shape in ((images, ["batch", 3, SIZE, SIZE]), (embeddings, ["batch", 3, 11])):
        assert tensor.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        assert [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim] == shape
    assert_no_path_of_this_machine(exported.path.read_bytes())


@pytest.mark.parametrize(
    "options",
    [
        {"classify": False, "sa_kernel": 1},
        {"without": "multi_level"},
        {"without": "asa"},
        {"name": "asenet_v2", "embedding_dim": None},
        {"name": "isln", "rounds": 1},
        {"name": "csn", "backbone": "resnet18"},
        pytest.param({"name": "csn", "backbone": "tf_efficientnet_lite0"}, marks=pytest.mark.slow),
        pytest.param({"name": "csn", "backbone": "convnext_atto"}, marks=pytest.mark.slow),
        pytest.param({"name": "csn", "backbone": "vit_tiny_patch16_224"}, marks=pytest.mark.slow),
    ],
)
def test_options_and_other_backbones(options, tmp_path):
    model = new_model(**options)
    assert export.save_program(model, tmp_path / "model.pt2", SIZE).difference <= 1e-5
    assert difference_in_onnxruntime(export.export_onnx(model, tmp_path / "model.onnx", SIZE).path, model) <= 1e-5


def test_a_negative_weight_of_the_map_is_exported_too(tmp_path):
    model = new_model()
    model.multi_level.asa.w1.data.fill_(-0.7)  # the maximum over channels is then at the other end
    assert difference_in_onnxruntime(export.export_onnx(model, tmp_path / "model.onnx", SIZE).path, model) <= 1e-5


def test_both_files_carry_what_their_users_need(csn, tmp_path):
    names = ["x" * 70_000, "", "袖"]
    export.save_program(csn, tmp_path / "m.pt2", SIZE, names, "pad")
    export.export_onnx(csn, tmp_path / "m.onnx", SIZE, names, "pad")
    extra = {"agman.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    in_onnx = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert json.loads(extra["agman.json"]) == in_onnx
    assert in_onnx["attributes"] == names
    assert (in_onnx["image_size"], in_onnx["fit"]) == (SIZE, "pad")
    assert in_onnx["mean"] == [0.485, 0.456, 0.406]


def test_the_model_stays_as_it_is(tmp_path):
    model = new_model("csn").double()
    model.train().backbone.layer1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = export.export_onnx(model, tmp_path / "m.onnx", SIZE).path
        program = export.export_program(model, SIZE).module()
    assert [layer.training for layer in model.modules()] == modes
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    model.float().eval()
    (images,), (expected,) = batches(model, sizes=(5,))
    assert difference_in_onnxruntime(path, model) <= 1e-5
    assert torch.allclose(program(images), expected, atol=1e-5)


def test_wrong_requests_say_what_is_wrong_and_leave_nothing(csn, tmp_path):
    with pytest.raises(ValueError, match="image_size must be at least 32, not 31"):
        export.export_program(csn, 31)
    for save, name in ((export.save_program, "m.pt2"), (export.export_onnx, "m.onnx")):
        with pytest.raises(ValueError, match="image_size must be at least 32, not 0"):
            save(csn, tmp_path / name, 0)
        with pytest.raises(ValueError, match=f"expected a name that ends in {name[1:]}"):
            save(csn, tmp_path / "m.bin", SIZE)
        with pytest.raises(ValueError, match="3 attributes, but 2 names"):
            save(csn, tmp_path / name, SIZE, NAMES[:2])
        with pytest.raises(FileNotFoundError, match=f"nowhere/{name}"):
            save(csn, tmp_path / "nowhere" / name, SIZE)
        (tmp_path / "file").touch()
        with pytest.raises(NotADirectoryError, match=f"file/{name}"):
            save(csn, tmp_path / "file" / name, SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("save", "name"), [(export.save_program, "m.pt2"), (export.export_onnx, "m.onnx")])
def test_a_file_that_differs_is_not_written(save, name, tmp_path):
    (tmp_path / name).write_text("old")
    with pytest.raises(export.ExportError, match=r"csn: exported, its embeddings differ by 0\.0001"):
        save(Changed(lambda expected: expected + 1e-4), tmp_path / name, SIZE)
    assert (tmp_path / name).read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda expected: expected * float("nan"), "csn: exported, its embeddings differ by nan"),
        (lambda expected: expected[:1].expand(2, -1, -1), r"csn: exported, 1 images give \(1, 3, 11\)"),
    ],
)
def test_nan_and_other_shapes_are_differences(change, message):
    with pytest.raises(export.ExportError, match=message):
        export.export_program(Changed(change), SIZE)


class Changed(CSN):
    """A model whose eager embeddings are not those that its graph computes."""

    def __init__(self, change):
        super().__init__(n_attributes=3, embedding_dim=11, backbone="tiny")
        self.change = change

    def embed_all(self, images):
        return self.change(super().embed_all(images))


class BatchAsConstant(CSN):
    """A Python number made of the batch size, which a trace would take for a constant."""

    def features(self, images):
        return super().features(images) / len(images)


@pytest.mark.parametrize(("save", "name"), [(export.save_program, "m.pt2"), (export.export_onnx, "m.onnx")])
def test_a_graph_for_one_batch_size_is_refused(save, name, tmp_path):
    model = BatchAsConstant(n_attributes=3, embedding_dim=11, backbone="tiny")
    with pytest.raises(export.ExportError, match=r"csn: cannot be turned into torch\.export: Constraints violated"):
        save(model, tmp_path / name, SIZE)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_their_extra(csn, tmp_path, monkeypatch):
    found = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    message = r'^ONNX needs onnx, onnxscript, onnxruntime; install with: pip install "agman-pipeline\[export\]"$'
    with pytest.raises(export.ExportError, match=message):
        export.export_onnx(csn, tmp_path / "m.onnx", SIZE)
    assert not list(tmp_path.iterdir())
