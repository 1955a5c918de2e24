"""A small evaluator of ONNX files, written from the specification (onnx.proto, Operators.md) for opsets 18 to 20.

It shares nothing with the exporter that wrote the file: a reader of the Protocol Buffers wire format, and one
function for each operator. Whatever it does not know (a field, an operator, an attribute, a type) is an error,
so that it cannot pass over something silently.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Message = dict[str, Any]
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 11: torch.float64}

# Field number -> (name, kind). A kind in capitals is a message; one with a star is repeated.
FIELDS: dict[str, dict[int, tuple[str, str]]] = {
    "MODEL": {
        1: ("ir_version", "int"),
        2: ("producer_name", "text"),
        3: ("producer_version", "text"),
        7: ("graph", "GRAPH"),
        8: ("opset_import", "OPSET*"),
        14: ("metadata_props", "ENTRY*"),
    },
    "OPSET": {1: ("domain", "text"), 2: ("version", "int")},
    "ENTRY": {1: ("key", "text"), 2: ("value", "text")},
    "GRAPH": {
        1: ("node", "NODE*"),
        2: ("name", "text"),
        5: ("initializer", "TENSOR*"),
        11: ("input", "VALUE*"),
        12: ("output", "VALUE*"),
    },
    "NODE": {
        1: ("input", "text*"),
        2: ("output", "text*"),
        3: ("name", "text"),
        4: ("op_type", "text"),
        5: ("attribute", "ATTRIBUTE*"),
        7: ("domain", "text"),
    },
    "ATTRIBUTE": {
        1: ("name", "text"),
        2: ("f", "float"),
        3: ("i", "int"),
        4: ("s", "bytes"),
        5: ("t", "TENSOR"),
        7: ("floats", "float*"),
        8: ("ints", "int*"),
        20: ("type", "int"),
    },
    "TENSOR": {1: ("dims", "int*"), 2: ("data_type", "int"), 8: ("name", "text"), 9: ("raw_data", "bytes")},
    "VALUE": {1: ("name", "text"), 2: ("type", "TYPE")},
    "TYPE": {1: ("tensor_type", "TENSOR_TYPE")},
    "TENSOR_TYPE": {1: ("elem_type", "int"), 2: ("shape", "SHAPE")},
    "SHAPE": {1: ("dim", "DIM*")},
    "DIM": {1: ("dim_value", "int"), 2: ("dim_param", "text")},
}
ATTRIBUTE_TYPES = {1: ("f", 0.0), 2: ("i", 0), 3: ("s", b""), 4: ("t", None), 6: ("floats", []), 7: ("ints", [])}


class UnknownPart(Exception):
    """Something in the file that this evaluator does not know."""


def read_model(data: bytes) -> Message:
    """The ModelProto of a file's bytes, as nested dictionaries; a field that is not there is absent."""
    return _message(data, "MODEL")


def declared(value: Message) -> tuple[torch.dtype, list[int | str]]:
    """Type and shape of a graph's input or output; a free size is its name."""
    tensor = value["type"]["tensor_type"]
    shape = [dim["dim_value"] if "dim_value" in dim else dim["dim_param"] for dim in tensor["shape"]["dim"]]
    return DTYPES[tensor["elem_type"]], shape


def run(model: Message, **feeds: Tensor) -> list[Tensor]:
    """The graph's outputs for its inputs by name."""
    opsets = {entry.get("domain", ""): entry["version"] for entry in model["opset_import"]}
    if opsets.keys() != {""} or not 18 <= opsets[""] <= 20:
        raise UnknownPart(f"opsets {opsets}")
    graph = model["graph"]
    _check_feeds(graph["input"], feeds)
    values = {tensor["name"]: _tensor(tensor) for tensor in graph["initializer"]} | feeds
    for node in graph["node"]:
        values[_only(node["output"])] = _apply(node, [values[name] if name else None for name in node.get("input", [])])
    return [values[output["name"]] for output in graph["output"]]


def _check_feeds(inputs: list[Message], feeds: dict[str, Tensor]) -> None:
    assert [entry["name"] for entry in inputs] == list(feeds)
    for entry in inputs:
        dtype, shape = declared(entry)
        fed = feeds[entry["name"]]
        assert fed.dtype == dtype
        assert len(fed.shape) == len(shape)
        assert all(isinstance(want, str) or want == size for want, size in zip(shape, fed.shape, strict=True))


def _apply(node: Message, inputs: list[Tensor | None]) -> Tensor:
    operator = OPERATORS.get(node["op_type"])
    if operator is None or node.get("domain"):
        raise UnknownPart(f"operator {node.get('domain', '')}.{node['op_type']}")
    attributes = {attribute["name"]: _attribute(attribute) for attribute in node.get("attribute", [])}
    try:
        return operator(*inputs, **attributes)
    except TypeError as error:  # an argument too many
        raise UnknownPart(f"{node['op_type']} with {len(inputs)} inputs and {attributes}: {error}") from error


def _attribute(attribute: Message) -> Any:
    if attribute["type"] not in ATTRIBUTE_TYPES:
        raise UnknownPart(f"attribute type {attribute['type']}")
    name, absent = ATTRIBUTE_TYPES[attribute["type"]]
    value = attribute.get(name, absent)
    return _tensor(value) if name == "t" else value


def _tensor(tensor: Message) -> Tensor:
    dtype = DTYPES[tensor["data_type"]]
    shape = tensor.get("dims", [])
    if not tensor["raw_data"]:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(bytearray(tensor["raw_data"]), dtype=dtype).reshape(shape)  # little-endian


# The wire format


def _message(data: bytes, kind: str) -> Message:
    message: Message = {}
    for number, wire, content in _wire_fields(data):
        if number not in FIELDS[kind]:
            raise UnknownPart(f"field {number} of {kind}")
        name, value_kind = FIELDS[kind][number]
        if value_kind.endswith("*"):
            message.setdefault(name, []).extend(_repeated(content, wire, value_kind[:-1]))
        else:
            message[name] = _value(content, wire, value_kind)
    return message


def _wire_fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            content, at = _varint(data, at)
        elif wire in (1, 2, 5):
            size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            content, at = data[at : at + size], at + size
        else:
            raise UnknownPart(f"wire type {wire}")
        yield number, wire, content
    if at != len(data):
        raise UnknownPart("the file ends in the middle of a field")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at


def _repeated(content: Any, wire: int, kind: str) -> list[Any]:
    """One value, or numbers packed into one field."""
    if wire == 2 and kind == "float":
        return list(struct.unpack(f"<{len(content) // 4}f", content))
    if wire == 2 and kind == "int":
        values, at = [], 0
        while at < len(content):
            value, at = _varint(content, at)
            values.append(_signed(value))
        return values
    return [_value(content, wire, kind)]


def _value(content: Any, wire: int, kind: str) -> Any:
    expected = {"int": 0, "float": 5}.get(kind, 2)
    if wire != expected:
        raise UnknownPart(f"wire type {wire} for {kind}")
    if kind == "int":
        return _signed(content)
    if kind == "float":
        return struct.unpack("<f", content)[0]
    if kind == "text":
        return content.decode()
    return content if kind == "bytes" else _message(content, kind)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# The operators: inputs by position, attributes by name, defaults as the specification has them


def _only(items: list[Any]) -> Any:
    if len(items) != 1:
        raise UnknownPart(f"{len(items)} outputs, where one is known")
    return items[0]


def _padded(x: Tensor, pads: list[int], value: float) -> Tensor:
    """`pads`: all beginnings, then all ends; torch wants the last axis first, beginning and end together."""
    top, left, bottom, right = pads
    return F.pad(x, (left, right, top, bottom), value=value)


def conv(x, w, b=None, *, dilations=(1, 1), group=1, kernel_shape=None, pads=(0, 0, 0, 0), strides=(1, 1)):
    if kernel_shape is not None and list(kernel_shape) != list(w.shape[2:]):
        raise UnknownPart(f"kernel_shape {kernel_shape} for weights {tuple(w.shape)}")
    return F.conv2d(_padded(x, pads, 0.0), w, b, stride=strides, dilation=dilations, groups=group)


def max_pool(x, *, kernel_shape, ceil_mode=0, dilations=(1, 1), pads=(0, 0, 0, 0), strides=(1, 1)):
    if ceil_mode:
        raise UnknownPart("ceil_mode")
    return F.max_pool2d(_padded(x, pads, float("-inf")), kernel_shape, strides, dilation=dilations)


def average_pool(x, *, kernel_shape, ceil_mode=0, count_include_pad=0, pads=(0, 0, 0, 0), strides=(1, 1)):
    if ceil_mode or (any(pads) and not count_include_pad):
        raise UnknownPart("ceil_mode, or padding that does not count")
    return F.avg_pool2d(_padded(x, pads, 0.0), kernel_shape, strides)


def batch_normalization(x, scale, bias, mean, variance, *, epsilon=1e-5, momentum=0.9, training_mode=0):
    if training_mode:
        raise UnknownPart("training_mode")
    scale, bias, mean, variance = (vector[:, None, None] for vector in (scale, bias, mean, variance))
    return (x - mean) / torch.sqrt(variance + epsilon) * scale + bias


def layer_normalization(x, scale, bias=None, *, axis=-1, epsilon=1e-5, stash_type=1):
    axes = list(range(axis % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdim=True)
    normalised = centred / torch.sqrt(centred.square().mean(axes, keepdim=True) + epsilon)
    return normalised * scale + (0 if bias is None else bias)


def gemm(a, b, c=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def softmax(x, *, axis=-1):
    powers = torch.exp(x - x.amax(axis, keepdim=True))
    return powers / powers.sum(axis, keepdim=True)


def divide(a, b):
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def modulo(a, b, *, fmod=0):
    if fmod or a.is_floating_point():
        raise UnknownPart("fmod")
    return torch.remainder(a, b)  # the sign is b's


def reduce_over(function, x, axes=None, *, keepdims=1, noop_with_empty_axes=0):
    if axes is None or not axes.numel():
        if noop_with_empty_axes:
            raise UnknownPart("noop_with_empty_axes")
        axes = torch.arange(x.ndim)
    return function(x, dim=axes.tolist(), keepdim=bool(keepdims))


def clip(x, low=None, high=None):
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def cast(x, *, to):
    return x.to(DTYPES[to])


def concat(*parts, axis):
    return torch.cat(parts, dim=axis)


def constant(*, value):
    return value


def constant_of_shape(shape, *, value=None):
    value = torch.zeros(1) if value is None else value
    return value.reshape(()).expand(shape.tolist()).clone()


def expand(x, shape):
    """Broadcasts both ways: a 1 in `shape` leaves x's size."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape.tolist())))


def gather(x, indices, *, axis=0):
    size = x.shape[axis]
    if ((indices < -size) | (indices >= size)).any():
        raise IndexError(f"Gather beyond {size}")
    picked = x.index_select(axis, (indices % size).flatten())
    axis %= x.ndim
    return picked.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def reshape(x, shape, *, allowzero=0):
    if allowzero:
        raise UnknownPart("allowzero")
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())])


def shape_of(x, *, start=0, end=None):
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def slice_of(x, starts, ends, axes=None, steps=None):
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), axes, steps, strict=True):
        if step < 1:
            raise UnknownPart(f"a step of {step}")
        numbers = range(x.shape[axis])[start:end:step]  # cut off at both ends, as the specification says
        x = x.index_select(axis, torch.tensor(list(numbers), dtype=torch.int64))
    return x


def squeeze(x, axes):
    return x.squeeze(axes.tolist())


def transpose(x, *, perm):
    return x.permute(perm)


def unsqueeze(x, axes):
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


def gelu(x, *, approximate=b"none"):
    if approximate != b"none":
        raise UnknownPart(f"approximate {approximate!r}")
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def hard_sigmoid(x, *, alpha=0.2, beta=0.5):
    return torch.clamp(alpha * x + beta, 0, 1)


OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Add": lambda a, b: a + b,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Clip": clip,
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "Div": divide,
    "Equal": lambda a, b: a == b,
    "Expand": expand,
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "GreaterOrEqual": lambda a, b: a >= b,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
    "Identity": lambda x: x,
    "LayerNormalization": layer_normalization,
    "MatMul": lambda a, b: a @ b,
    "MaxPool": max_pool,
    "Mod": modulo,
    "Mul": lambda a, b: a * b,
    "Reciprocal": lambda x: 1 / x,
    "ReduceL2": partial(reduce_over, lambda x, dim, keepdim: x.square().sum(dim, keepdim=keepdim).sqrt()),
    "ReduceMax": partial(reduce_over, torch.amax),
    "ReduceMean": partial(reduce_over, torch.mean),
    "ReduceMin": partial(reduce_over, torch.amin),
    "Relu": lambda x: torch.clamp(x, min=0),
    "Reshape": reshape,
    "Shape": shape_of,
    "Sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "Slice": slice_of,
    "Softmax": softmax,
    "Squeeze": squeeze,
    "Sub": lambda a, b: a - b,
    "Tanh": torch.tanh,
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": torch.where,
}
