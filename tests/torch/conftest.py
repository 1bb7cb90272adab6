import sys

import pytest


def pytest_ignore_collect(collection_path):
    """Without PyTorch none of these files can be imported."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        pytest.importorskip("torch", reason='needs PyTorch: python -m pip install "fastattn[torch]"')


@pytest.fixture(autouse=True)
def _forget_compiled():
    """torch.compile gives a function up that it has compiled for eight forms."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None and "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture(autouse=True)
def _swap_every_size(request, monkeypatch):
    """Modules compute small sizes too, which accelerate leaves to torch."""
    if "torch" in sys.modules and "own_sizes" not in request.fixturenames:
        from fastattn.torch import modules  # noqa: PLC0415 (after the check that torch is there)

        monkeypatch.setattr(modules, "LEAST_KEYS", {False: 0, True: 0})
        monkeypatch.setattr(modules, "LEAST_TOKENS", 0)


@pytest.fixture
def own_sizes():
    """Modules choose as they do for users."""
