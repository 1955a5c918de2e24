"""Exported models against the eager ones; ONNX files in an evaluator of our own (`onnx_reference`)."""

import io
import json
import subprocess
import sys
import warnings
import zipfile
from types import SimpleNamespace

import pytest
import torch
from support import onnx_reference

import agman
from agman import export

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
    """With batch norm as after training: a fresh layer is nearly the identity, and hides mistakes."""
    torch.manual_seed(1)
    arguments = {"n_attributes": 3, "embedding_dim": 11, "backbone": "resnet18"} | arguments
    model = agman.build(name, **arguments).eval()
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.running_var, layer.weight.data):
                tensor.uniform_(0.5, 1.5)
            for tensor in (layer.running_mean, layer.bias.data):
                tensor.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module", params=agman.MODELS)
def model(request):
    """In evaluation mode, and not to be changed."""
    return new_model(request.param)


@pytest.fixture(scope="module")
def csn():
    """The smallest, where any model will do."""
    return new_model("csn")


@torch.no_grad()
def batches(model, sizes=(1, 5)):
    """Images, and what the eager model makes of them."""
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(size, 3, SIZE, SIZE, generator=generator) for size in sizes]
    return inputs, [model.embed_all(images) for images in inputs]


def difference_of_onnx(data, model):
    graph = onnx_reference.read_model(data)
    found = [onnx_reference.run(graph, images=images) for images in batches(model)[0]]
    return max(float((f - e).abs().max()) for (f,), e in zip(found, batches(model)[1], strict=True))


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    """The model's ONNX file, its content."""
    return agman.export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx", SIZE, NAMES).path.read_bytes()


def test_programs_load_without_this_package_and_without_running_pickled_code(tmp_path):
    """One process loads them all."""
    for name in agman.MODELS:
        model = new_model(name)
        exported = agman.save_program(model, tmp_path / f"{name}.pt2", SIZE, NAMES)
        assert exported.path == tmp_path / f"{name}.pt2"
        assert 0 <= exported.difference <= 1e-5
        torch.save(batches(model), tmp_path / f"{name}.pt")
    command = [sys.executable, "-I", "-c", LOAD_ELSEWHERE, *agman.MODELS]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    for name in agman.MODELS:
        with zipfile.ZipFile(tmp_path / f"{name}.pt2") as archive:
            contents = {path.split("/", 1)[1]: archive.read(path) for path in archive.namelist()}
        for config in ("weights/model_weights", "constants/model_constants"):
            tensors = json.loads(contents[f"data/{config}_config.json"])["config"]
            assert not any(tensor["use_pickle"] for tensor in tensors.values())
        torch.load(io.BytesIO(contents["data/sample_inputs/model.pt"]), weights_only=True)
        assert export.__file__.encode() not in contents["models/model.json"], "a path of this machine is in the file"


def test_onnx_files_give_the_models_embeddings(model, onnx_file):
    graph = onnx_reference.read_model(onnx_file)
    (images,), (embeddings,) = graph["graph"]["input"], graph["graph"]["output"]
    assert (images["name"], embeddings["name"]) == ("images", "embeddings")
    assert onnx_reference.declared(images) == (torch.float32, ["batch", 3, SIZE, SIZE])
    assert onnx_reference.declared(embeddings) == (torch.float32, ["batch", 3, 11])
    assert difference_of_onnx(onnx_file, model) <= 1e-5


@pytest.mark.parametrize("changed", ["first", "last"])
def test_a_wrong_weight_in_the_onnx_file_is_noticed(model, onnx_file, changed):
    weights = [w for w in onnx_reference.read_model(onnx_file)["graph"]["initializer"] if len(w.get("dims", [])) >= 2]
    raw = weights[0 if changed == "first" else -1]["raw_data"]
    wrong = torch.frombuffer(bytearray(raw), dtype=torch.float32).clone()
    wrong[::2] += 0.01
    assert onnx_file.count(raw) == 1
    assert difference_of_onnx(onnx_file.replace(raw, wrong.numpy().tobytes()), model) > 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"classify": False, "sa_kernel": 1},
        {"without": "multi_level"},
        {"without": "asa"},
        {"name": "asenet_v2", "embedding_dim": None},
        {"name": "isln", "rounds": 1},
        {"name": "csn", "backbone": "mobilenet_v3_small"},
        {"name": "agman", "backbone": "convnext_tiny", "classify": False},
    ],
)
def test_options_and_other_backbones(options, tmp_path):
    model = new_model(**options)
    assert agman.save_program(model, tmp_path / "model.pt2", SIZE).difference <= 1e-5
    path = agman.export_onnx(model, tmp_path / "model.onnx", SIZE).path
    assert difference_of_onnx(path.read_bytes(), model) <= 1e-5


def test_a_negative_weight_of_the_map_is_exported_too(tmp_path):
    model = new_model()
    model.multi_level.asa.w1.data.fill_(-0.7)  # the maximum over channels is then at the other end
    path = agman.export_onnx(model, tmp_path / "model.onnx", SIZE).path
    assert difference_of_onnx(path.read_bytes(), model) <= 1e-5


def test_both_files_carry_what_their_users_need(csn, tmp_path):
    agman.save_program(csn, tmp_path / "m.pt2", SIZE, NAMES)
    agman.export_onnx(csn, tmp_path / "m.onnx", SIZE, NAMES)
    extra = {"agman.json": ""}
    torch.export.load(tmp_path / "m.pt2", extra_files=extra)
    entries = onnx_reference.read_model((tmp_path / "m.onnx").read_bytes())["metadata_props"]
    in_onnx = {entry["key"]: json.loads(entry["value"]) for entry in entries}
    assert json.loads(extra["agman.json"]) == in_onnx
    assert in_onnx["attributes"] == NAMES
    assert in_onnx["image_size"] == SIZE
    assert in_onnx["mean"] == [0.485, 0.456, 0.406]
    long = ["x" * 70_000, "", "袖"]  # lengths of one, two and three bytes
    entries = onnx_reference.read_model(export._metadata_props({"attributes": long}))["metadata_props"]
    assert json.loads(entries[0]["value"]) == long


def test_the_model_stays_as_it_is(tmp_path):
    model = new_model("csn").double()
    model.train().backbone.layer1.eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    modes = [layer.training for layer in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = agman.export_onnx(model, tmp_path / "m.onnx", SIZE).path
        program = agman.export_program(model, SIZE).module()
    assert [layer.training for layer in model.modules()] == modes
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    model.float().eval()
    (images,), (expected,) = batches(model, sizes=(5,))
    assert difference_of_onnx(path.read_bytes(), model) <= 1e-5
    assert torch.allclose(program(images), expected, atol=1e-5)


def test_wrong_requests_say_what_is_wrong_and_leave_nothing(csn, tmp_path):
    with pytest.raises(ValueError, match="image_size must be at least 32, not 31"):
        agman.export_program(csn, 31)
    for save, name in ((agman.save_program, "m.pt2"), (agman.export_onnx, "m.onnx")):
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


def test_a_program_that_differs_is_not_written(tmp_path, monkeypatch):
    (tmp_path / "m.pt2").write_text("old")
    model = new_model("csn")
    monkeypatch.setattr(model, "embed_all", lambda images: torch.zeros(len(images), 3, 11))
    with pytest.raises(agman.ExportError, match="csn: exported, its embeddings differ by"):
        agman.save_program(model, tmp_path / "m.pt2", SIZE)
    broken = new_model("csn")
    broken.project.bias.data[0] = float("nan")
    with pytest.raises(agman.ExportError, match="differ by nan"):
        agman.save_program(broken, tmp_path / "m.pt2", SIZE)
    assert (tmp_path / "m.pt2").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


class BatchAsConstant(agman.CSN):
    """A mistake of the kind that a trace hides: a Python number made of the batch size."""

    def features(self, images):
        return super().features(images) / len(images)


def test_a_graph_for_one_batch_size_is_refused(csn, tmp_path, monkeypatch):
    model = BatchAsConstant(n_attributes=3, embedding_dim=11, backbone="resnet18")
    with pytest.raises(agman.ExportError, match="depends on the number of images"):
        agman.export_onnx(model, tmp_path / "m.onnx", SIZE)
    with pytest.raises(agman.ExportError, match=r"csn: cannot be turned into torch\.export: Constraints violated"):
        agman.save_program(model, tmp_path / "m.pt2", SIZE)
    assert not list(tmp_path.iterdir())


def as_onnxruntime(monkeypatch, change=lambda x: x):
    """Stands in for the package, which need not be installed: `change` is applied to what the graph gives."""

    class InferenceSession:
        def __init__(self, data, providers):
            self.model = onnx_reference.read_model(data)

        def run(self, outputs, feeds):
            assert outputs == ["embeddings"]
            feeds = {name: torch.from_numpy(array) for name, array in feeds.items()}
            return [change(output).numpy() for output in onnx_reference.run(self.model, **feeds)]

    found = export.importlib.util.find_spec
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name, *a: name == "onnxruntime" or found(name, *a))
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(InferenceSession=InferenceSession))


def test_where_onnxruntime_is_installed_it_checks_the_file(csn, tmp_path, monkeypatch):
    as_onnxruntime(monkeypatch)
    assert 0 < agman.export_onnx(csn, tmp_path / "m.onnx", SIZE).difference <= 1e-5
    as_onnxruntime(monkeypatch, lambda x: x + 1e-4)
    with pytest.raises(agman.ExportError, match=r"differ by 0\.0001"):
        agman.export_onnx(csn, tmp_path / "other.onnx", SIZE)
    as_onnxruntime(monkeypatch, lambda x: x[:1])
    with pytest.raises(agman.ExportError, match=r"3 images give \(1, 3, 11\)"):
        agman.export_onnx(csn, tmp_path / "other.onnx", SIZE)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_the_evaluator_passes_over_nothing(csn, tmp_path):
    data = agman.export_onnx(csn, tmp_path / "m.onnx", SIZE).path.read_bytes()
    images = torch.zeros(1, 3, SIZE, SIZE)
    for old, new in ((b"Relu", b"Rely"), (b"strides", b"stridez")):
        with pytest.raises(onnx_reference.UnknownPart, match=new.decode()):
            onnx_reference.run(onnx_reference.read_model(data.replace(old, new)), images=images)
    with pytest.raises(onnx_reference.UnknownPart, match="field 15 of MODEL"):
        onnx_reference.read_model(data + export._field(15, b"x"))
