import pytest


def pytest_ignore_collect(collection_path):
    """Without JAX none of these files can be imported."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        pytest.importorskip("jax", reason='needs JAX: python -m pip install "fastattn[jax]"')
