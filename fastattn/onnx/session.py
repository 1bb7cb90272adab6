"""Session: a model that is read once and run many times."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from onnx import helper

from fastattn import _core
from fastattn.onnx.fusion import fuse
from fastattn.onnx.graph import Array
from fastattn.onnx.loading import InvalidModel, Source, read_model
from fastattn.onnx.plan import Plan
from fastattn.onnx.reading import read_graph

# Of ONNX's element types, those that onnxruntime calls otherwise than NumPy.
_TYPE_NAMES = {"float32": "float", "float64": "double", "object": "string"}


class ValueInfo(NamedTuple):
    """An input or output of a model, as onnxruntime's NodeArg: a shape has a number, a name or None for each axis."""

    name: str
    type: str
    shape: list[int | str | None]


class Session:
    """A model, planned once.

    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    >>> node = helper.make_node("Softmax", ["x"], ["y"])
    >>> model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
    >>> load(model).run(None, {"x": np.zeros((1, 2), np.float32)})
    [array([[0.5, 0.5]], dtype=float32)]
    """

    def __init__(self, model: Source, *, shapes: Mapping[str, Sequence[int]] | None = None) -> None:
        proto = read_model(model)
        _fix_shapes(proto.graph, shapes or {})
        try:
            self._prepare(proto, shapes)
        except (InvalidModel, NotImplementedError, MemoryError):
            raise
        except Exception as error:  # what the checker let pass
            raise InvalidModel(f"load: the model must be a valid ONNX model: {error!r}") from error

    def _prepare(self, proto: Any, shapes: Mapping[str, Sequence[int]] | None) -> None:
        opsets = {"" if entry.domain == "ai.onnx" else entry.domain: entry.version for entry in proto.opset_import}
        opsets.setdefault("", 1)
        graph = read_graph(proto.graph, opsets, None, shapes)
        if graph.captures:
            raise InvalidModel(f"load: the model must compute the values it uses, got no {graph.captures[0]!r}")
        infos = {value.name: value for value in proto.graph.input}
        self._inputs = [_value_info(infos[name]) for name in graph.inputs]
        self._checks = [_Check(info, infos[info.name].type) for info in self._inputs]
        self._outputs = [_value_info(value) for value in proto.graph.output]
        self._names = {info.name: i for i, info in enumerate(self._outputs)}
        self._plan = Plan(fuse(graph))

    def get_inputs(self) -> list[ValueInfo]:
        """Names, types and shapes of the inputs."""
        return list(self._inputs)

    def get_outputs(self) -> list[ValueInfo]:
        """Names, types and shapes of the outputs."""
        return list(self._outputs)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any]) -> list[Any]:
        """The named outputs, or all for None, of arrays by the names of the inputs. Results are arrays of their own."""
        values = [check(input_feed) for check in self._checks]
        if len(input_feed) != len(values):
            unknown = [name for name in input_feed if all(name != info.name for info in self._inputs)]
            raise ValueError(f"Session.run: input_feed must have inputs of the model, got {unknown[0]!r}")
        with np.errstate(all="ignore"):
            results = self._plan(values)
        if output_names is not None:
            results = [results[self._position(name)] for name in output_names]
        return _own(results)

    def _position(self, name: str) -> int:
        if name not in self._names:
            raise ValueError(f"Session.run: output_names must be of {', '.join(self._names)}, got {name!r}")
        return self._names[name]


def load(model: Source, *, shapes: Mapping[str, Sequence[int]] | None = None) -> Session:
    """A Session of a model: a path, bytes or an onnx.ModelProto.

    shapes: of inputs by name, where all runs have them. What depends on shapes alone, branches too, is then computed
    once; runs with other shapes are refused.

    onnx's checker sees the model first. Data outside the file is read from the folder of the model alone. Raises
    InvalidModel for what is no model, UnsupportedOperator for an operator that neither fastattn nor onnx has.
    """
    return Session(model, shapes=shapes)


def _fix_shapes(graph: Any, shapes: Mapping[str, Sequence[int]]) -> None:
    """Puts shapes into what the model declares of its inputs."""
    infos = {value.name: value for value in graph.input}
    for name, sizes in shapes.items():
        if name not in infos or infos[name].type.WhichOneof("value") != "tensor_type":
            raise ValueError(f"load: shapes must be of inputs of the model, {', '.join(infos)}, got {name!r}")
        declared = _dimensions(infos[name].type)
        known = infos[name].type.tensor_type.HasField("shape")
        whole = [operator.index(size) for size in sizes]
        if min(whole, default=0) < 0 or (known and len(whole) != len(declared)) or any(
            isinstance(n, int) and n != size for n, size in zip(declared, whole, strict=False)
        ):  # fmt: skip
            raise ValueError(f"load: shapes[{name!r}] must fit {declared}, got {list(sizes)}")
        shape = infos[name].type.tensor_type.shape
        shape.ClearField("dim")
        shape.SetInParent()
        for size in whole:
            shape.dim.add().dim_value = size


class _Check:
    """Takes one input out of a feed: an array of the declared type and shape, not to be written to."""

    def __init__(self, info: ValueInfo, proto: Any) -> None:
        self._name, self._shape = info.name, info.shape
        tensor = proto.WhichOneof("value") == "tensor_type"
        self._dtype = np.dtype(helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type)) if tensor else None
        self._ranked = tensor and proto.tensor_type.HasField("shape")
        self._fixed = [(i, n) for i, n in enumerate(info.shape) if isinstance(n, int)] if self._ranked else []

    def __call__(self, feed: Mapping[str, Any]) -> Any:
        if self._name not in feed:
            raise ValueError(
                f"Session.run: input_feed must have the input {self._name!r}, got {', '.join(feed) or 'none'}"
            )
        value = feed[self._name]
        if self._dtype is None:  # a sequence, or what may be absent
            return value
        if type(value) is not np.ndarray:
            value = np.asarray(value, object) if self._dtype.kind == "O" else self._converted(value)
        if value.dtype != self._dtype and not (self._dtype.kind == "O" and value.dtype.kind in "OUST"):
            raise TypeError(f"Session.run: {self._name} must be {self._dtype}, got {value.dtype}")
        if self._ranked and (
            value.ndim != len(self._shape) or any(value.shape[i] != size for i, size in self._fixed)
        ):  # fmt: skip
            raise ValueError(f"Session.run: {self._name} must have shape {self._shape}, got {value.shape}")
        view: Array = value.view()
        view.flags.writeable = False
        return view

    def _converted(self, value: Any) -> Array:
        if isinstance(value, list | tuple | int | float | np.generic):
            return np.asarray(value, self._dtype if not isinstance(value, np.generic) else None)
        return _core.checked_array(value, "Session.run", self._name)


def _own(results: list[Any]) -> list[Any]:
    """Arrays that share no memory with each other, with inputs or with what the session keeps."""
    owners: set[int] = set()
    for i, value in enumerate(results):
        if isinstance(value, np.generic):
            results[i] = np.asarray(value)
        elif isinstance(value, np.ndarray):
            owner: Any = value
            while owner.base is not None and isinstance(owner.base, np.ndarray):
                owner = owner.base
            if not value.flags.writeable or id(owner) in owners:
                results[i] = owner = value.copy()
            owners.add(id(owner))
    return results


def _value_info(value: Any) -> ValueInfo:
    return ValueInfo(value.name, _type_name(value.type), _dimensions(value.type))


def _type_name(proto: Any) -> str:
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        name = np.dtype(helper.tensor_dtype_to_np_dtype(proto.tensor_type.elem_type)).name
        return f"tensor({_TYPE_NAMES.get(name, name)})"
    if kind == "sequence_type":
        return f"seq({_type_name(proto.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"optional({_type_name(proto.optional_type.elem_type)})"
    return str(kind)


def _dimensions(proto: Any) -> list[int | str | None]:
    if proto.WhichOneof("value") != "tensor_type":
        return []
    return [
        axis.dim_value if axis.HasField("dim_value") else axis.dim_param or None for axis in proto.tensor_type.shape.dim
    ]
