import pytest


def pytest_ignore_collect(collection_path):
    """Without onnx none of these files can be imported."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        pytest.importorskip("onnx", reason='needs onnx: python -m pip install "fastattn[onnx]"')
