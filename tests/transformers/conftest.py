import os
import sys

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_ignore_collect(collection_path):
    """Without transformers none of these files can be imported."""
    if collection_path.suffix == ".py" and collection_path.name.startswith("test_"):
        for package in ("torch", "transformers"):
            pytest.importorskip(package, reason='needs transformers: python -m pip install "fastattn[transformers]"')


@pytest.fixture(autouse=True)
def _one_thread():
    """Small models are slower on more threads, by far where something else runs."""
    import torch  # noqa: PLC0415

    import fastattn as fa  # noqa: PLC0415

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with fa.num_threads(1):
        yield
    torch.set_num_threads(threads)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
