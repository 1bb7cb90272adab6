"""Models from files, bytes or protos, checked before anything in them is used."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, inliner

Source = str | os.PathLike[str] | bytes | Any


class InvalidModel(ValueError):
    """A file that is no ONNX model, or one that onnx's checker refuses."""


def read_model(source: Source) -> Any:
    """The checked ModelProto, its external data loaded and its functions inlined."""
    if isinstance(source, onnx.ModelProto):
        model, folder, path = onnx.ModelProto(), None, None
        model.CopyFrom(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        model, folder, path = _parsed(bytes(source), "the bytes"), None, None
    elif isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        model, folder = _parsed(Path(path).read_bytes(), path), Path(path).parent
    else:
        raise TypeError(f"load: model must be a path, bytes or an onnx.ModelProto, got {type(source).__name__}")
    name = path or "the model"
    external = [tensor for tensor in _tensors(model) if external_data_helper.uses_external_data(tensor)]
    for tensor in external:
        _check_location(tensor, folder, name)
    try:
        # A path, where there are files beside it: the checker then looks at these too.
        onnx.checker.check_model(path if external and path else model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise InvalidModel(f"load: {name} must be a valid ONNX model: {error}") from error
    if external:
        external_data_helper.load_external_data_for_model(model, str(folder))
    return inliner.inline_local_functions(model) if model.functions else model


def _parsed(data: bytes, name: str) -> Any:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise InvalidModel(f"load: {name} must be an ONNX model, got {len(data)} bytes of something else") from error
    if not model.HasField("graph"):
        raise InvalidModel(f"load: {name} must be an ONNX model, got one without a graph")
    return model


def _check_location(tensor: Any, folder: Path | None, name: str) -> None:
    """External data lies in the folder of the model, links included, and is as long as the model says."""
    info = external_data_helper.ExternalDataInfo(tensor)
    if folder is None:
        raise InvalidModel(
            f"load: {name} must have a path, because tensor {tensor.name!r} is in a file beside it, {info.location!r}"
        )
    root = folder.resolve()
    target = (root / info.location).resolve()
    if not info.location or not target.is_relative_to(root):
        raise InvalidModel(
            f"load: {name} must keep its data in its own folder, got {info.location!r} for tensor {tensor.name!r}"
        )
    size = target.stat().st_size if target.is_file() else -1
    if size < (info.offset or 0) + (info.length or 0):
        there = "no such file" if size < 0 else f"{size} bytes"
        raise InvalidModel(
            f"load: {name} must come with the data of tensor {tensor.name!r}: {info.location!r}: {there}"
        )


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of the model: of graphs, of attributes, of functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else ()),
                           *attribute.sparse_tensors):  # fmt: skip
                yield from (sparse.values, sparse.indices)
            for graph in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _of_graph(graph)
