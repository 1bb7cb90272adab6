"""How near results of two libraries must be: each is within the error rule of the exact value."""

import torch

FACTOR = 64  # roundings of sums and functions on the way, of both


def assert_close(found, expected, rough=False):
    """In units of the last place of the largest element, results or trees of results; `rough`: of float32."""
    if expected is None:
        assert found is None
    elif isinstance(expected, torch.Tensor):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        if expected.numel():
            exact = expected.detach().double()
            largest = max(1.0, exact[exact.isfinite()].abs().max().item() if exact.isfinite().any() else 1.0)
            bound = FACTOR * torch.finfo(torch.float32 if rough else expected.dtype).eps * largest
            torch.testing.assert_close(found.detach().double(), exact, rtol=0, atol=bound, equal_nan=True)
    else:
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_close(a, b)
