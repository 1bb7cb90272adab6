"""Ring attention between threads of this process equals attention of the whole, and nothing waits for ever."""

import threading

import ml_dtypes
import numpy as np
import pytest

import fastattn as fa
import fastattn.mpi as fam

WINDOWS = [None, (5, None), (3, 2), (None, 7), (0, 0), (20, 3), (13, 30)]
TOLERANCE = 1e-13  # of float64 results of size 1: of several merges, each of a few roundings


def qkv(rng, length=48, dtype=np.float64, layout="bhld"):
    arrays = [rng.standard_normal((2, heads, length, 8)).astype(dtype) for heads in (4, 2, 2)]
    return arrays if layout == "bhld" else [np.ascontiguousarray(x.swapaxes(1, 2)) for x in arrays]


def whole(comm, function, arrays, axis=2, zigzag=True):
    """The results of a function on the parts of arrays, put together."""
    parts = function(comm, *(fam.shard(comm, x, axis=axis, zigzag=zigzag) for x in arrays))
    return [fam.unshard(comm, part, axis=axis, zigzag=zigzag) for part in parts]


@pytest.mark.parametrize("zigzag", [False, True], ids=["plain", "zigzag"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_results_are_those_of_one_process(rng, size, causal, zigzag):
    arrays = qkv(rng)
    for window in WINDOWS:
        options = {"causal": causal, "window": window, "scale": 0.4, "softcap": 5.0}

        def run(comm, options=options):
            ring = lambda comm, *parts: fam.ring_attention(comm, *parts, **options, zigzag=zigzag, return_lse=True)  # noqa: E731
            return whole(comm, ring, arrays, zigzag=zigzag)

        expected = fa.attention(*arrays, **options, return_lse=True)
        for found in fam.run_in_threads(size, run):
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


def test_the_other_layout_and_keys_of_another_length(rng):
    q, k, v = qkv(rng, 12, layout="blhd")
    k, v = np.concatenate([k, k[:, ::2]], 1), np.concatenate([v, -v[:, ::2]], 1)
    expected = fa.attention(q, k, v, layout="blhd")

    def run(comm):
        return whole(comm, lambda comm, *parts: [fam.ring_attention(comm, *parts, layout="blhd")], (q, k, v), 1)

    for (found,) in fam.run_in_threads(3, run):
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=["f32", "bf16", "f16"])
def test_other_types_are_as_near_as_their_roundings(rng, dtype):
    arrays = qkv(rng, dtype=dtype)
    exact = fa.attention(*(x.astype(np.float64) for x in arrays), causal=True)

    def run(comm):
        return whole(comm, lambda comm, *parts: [fam.ring_attention(comm, *parts, causal=True)], arrays)

    for (found,) in fam.run_in_threads(2, run):
        assert found.dtype == dtype
        error = np.abs(found.astype(np.float64) - exact).max()
        one = np.abs(fa.attention(*arrays, causal=True).astype(np.float64) - exact).max()
        assert error <= 4 * max(one, float(ml_dtypes.finfo(dtype).eps))


@pytest.mark.parametrize("zigzag", [False, True], ids=["plain", "zigzag"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_gradients_are_those_of_one_process(rng, size, causal, zigzag):
    q, k, v = qkv(rng)
    dout = rng.standard_normal(q.shape)
    for window in WINDOWS:
        options = {"causal": causal, "window": window, "scale": 0.4, "softcap": 5.0}

        def ring(comm, *parts, options=options):
            out, saved = fam.ring_attention_forward(comm, *parts[:3], **options, zigzag=zigzag)
            return out, *fam.ring_attention_backward(parts[3], saved)

        out, saved = fa.attention_forward(q, k, v, **options)
        expected = out, *fa.attention_backward(dout, saved)
        for found in fam.run_in_threads(
            size, lambda comm, ring=ring: whole(comm, ring, (q, k, v, dout), zigzag=zigzag)
        ):
            for got, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16], ids=["f32", "bf16", "f16"])
def test_gradients_of_other_types_and_the_other_layout(rng, dtype):
    q, k, v = qkv(rng, dtype=dtype, layout="blhd")
    dout = rng.standard_normal(q.shape).astype(dtype)
    options = {"causal": True, "layout": "blhd"}

    def ring(comm, *parts):
        saved = fam.ring_attention_forward(comm, *parts[:3], **options)[1]
        return fam.ring_attention_backward(parts[3], saved)

    def one(*arrays):
        return fa.attention_backward(arrays[3], fa.attention_forward(*arrays[:3], **options)[1])

    arrays = (q, k, v, dout)
    exact = one(*(x.astype(np.float64) for x in arrays))
    for found in fam.run_in_threads(3, lambda comm: whole(comm, ring, arrays, 1)):
        for got, single, right in zip(found, one(*arrays), exact, strict=True):
            assert got.dtype == dtype
            error, least = (np.abs(x.astype(np.float64) - right).max() for x in (got, single))
            assert error <= 4 * max(least, float(ml_dtypes.finfo(dtype).eps))


def test_results_do_not_depend_on_the_order_of_arrival(rng):
    arrays = qkv(rng)

    def run(comm):
        return whole(comm, lambda comm, *parts: [fam.ring_attention(comm, *parts, causal=True)], arrays)

    first, second = fam.run_in_threads(4, run), fam.run_in_threads(4, run)
    np.testing.assert_array_equal(first, second)


def test_parts_are_put_together_as_they_were_taken_apart(rng):
    x = rng.standard_normal((3, 24)).astype(np.float16)
    for zigzag in (False, True):

        def run(comm, zigzag=zigzag):
            part = fam.shard(comm, x, axis=-1, zigzag=zigzag)
            return part, fam.unshard(comm, part, axis=1, zigzag=zigzag)

        for part, back in fam.run_in_threads(4, run):
            assert part.shape == (3, 6)
            np.testing.assert_array_equal(back, x)


def test_sizes_of_zero(rng):
    q, k, v = qkv(rng, 0)
    assert [x.shape for x in fam.run_in_threads(2, lambda c: fam.ring_attention(c, q, k, v, causal=True))] == [
        q.shape
    ] * 2


# ---- what raises ----


def errors_of(size, call):
    """What the call raises on each rank."""

    def run(comm):
        try:
            call(comm)
        except (TypeError, ValueError, TimeoutError, RuntimeError) as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    return fam.run_in_threads(size, run)


def test_different_shapes_types_and_options_are_named_on_all_ranks():
    x = np.ones((1, 2, 8, 4))

    def shapes(comm):
        part = x[:, :, : 8 if comm.Get_rank() else 4]
        fam.ring_attention(comm, part, part, part)

    message = r"q must have one shape on all ranks, got (1, 2, 4, 4) on rank 0, (1, 2, 8, 4) on rank 1"
    assert errors_of(2, shapes) == [f"ValueError: ring_attention: {message}"] * 2

    def dtypes(comm):
        part = x.astype(np.float32 if comm.Get_rank() else np.float64)
        fam.ring_attention(comm, part, part, part)

    assert all("q must have one dtype on all ranks, got float64 on rank 0" in error for error in errors_of(2, dtypes))
    found = errors_of(3, lambda comm: fam.ring_attention(comm, x, x, x, causal=comm.Get_rank() == 1))
    assert all("causal must be one on all ranks, got False on rank 0, True on rank 1" in error for error in found)
    found = errors_of(2, lambda comm: fam.unshard(comm, x[:, :, : 2 + 2 * comm.Get_rank()]))
    assert all("unshard: part must have one shape on all ranks" in error for error in found)


def test_a_fault_on_one_rank_is_raised_on_all():
    x = np.ones((1, 2, 8, 4))
    found = errors_of(3, lambda comm: fam.ring_attention(comm, x, x, x[0] if comm.Get_rank() == 1 else x))
    assert "v must have 4 axes" in found[1]
    assert all("ring_attention: on rank 1, v must have 4 axes" in found[rank] for rank in (0, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": "top-left"}, "causal must be True or False"),
        ({"window": (1, 2, 3)}, "window must"),
        ({"layout": "lbhd"}, "layout must be one of"),
        ({"k": np.ones((1, 3, 8, 4))}, "must"),
        ({"k": np.ones((1, 2, 4, 4)), "v": np.ones((1, 2, 4, 4)), "causal": True}, "k must have the length of q"),
        ({**dict.fromkeys("qkv", np.ones((1, 2, 7, 4))), "causal": True}, "q must have an even length"),
        ({"v": np.ones((1, 2, 8, 4), np.int64)}, "v must"),
        ({"timeout": 0}, "timeout must be a positive number"),
    ],
)
def test_faults_of_arguments_are_named(change, message):
    arguments = dict.fromkeys("qkv", np.ones((1, 2, 8, 4))) | change
    for error in errors_of(2, lambda comm: fam.ring_attention(comm, **arguments)):
        assert "ring_attention: " in error
        assert message in error


def test_faults_of_a_gradient_are_named_on_all_ranks():
    x = np.ones((1, 2, 8, 4))

    def run(comm, dout):
        saved = fam.ring_attention_forward(comm, x, x, x)[1]
        fam.ring_attention_backward(dout if comm.Get_rank() else x, saved)

    own, other = (errors_of(2, lambda comm: run(comm, x[:, :, :4]))[rank] for rank in (1, 0))
    assert own == "ValueError: ring_attention_backward: dout must have shape (1, 2, 8, 4), got (1, 2, 4, 4)"
    assert "ring_attention_backward: on rank 1, dout must have shape" in other
    assert "dout must be float64 like the output" in errors_of(2, lambda comm: run(comm, x.astype(np.float32)))[1]
    with pytest.raises(TypeError, match="ring_attention_backward: saved must be what ring_attention_forward returned"):
        fam.ring_attention_backward(x, None)


def test_what_is_no_communicator_and_no_whole_number_of_pieces_is_named():
    x = np.ones((1, 1, 6, 4))
    with pytest.raises(TypeError, match="ring_attention: comm must be a communicator of mpi4py, got int"):
        fam.ring_attention(3, x, x, x)
    assert "shard: x must have a multiple of 4 elements on axis 2, got 6" in errors_of(2, lambda c: fam.shard(c, x))[0]
    with pytest.raises(ValueError, match="run_in_threads: size must be a positive integer"):
        fam.run_in_threads(0, lambda comm: None)


def test_a_rank_that_fails_is_an_error_of_the_others():
    x, started = np.ones((1, 2, 8, 4)), threading.Event()

    def run(comm):
        if comm.Get_rank() == 1:
            started.wait(10)
            raise ZeroDivisionError("rank 1 is gone")
        started.set()
        with pytest.raises(RuntimeError, match=r"ring_attention: rank \d cannot exchange data with .*rank 1 failed"):
            fam.ring_attention(comm, x, x, x)

    with pytest.raises(ZeroDivisionError, match="rank 1 is gone"):
        fam.run_in_threads(3, run)


def test_a_rank_that_does_not_come_is_an_error_after_the_timeout():
    x, done = np.ones((1, 2, 8, 4)), threading.Event()

    def run(comm):
        if comm.Get_rank() == 1:
            done.wait(10)
            return
        with pytest.raises(TimeoutError, match=r"ring_attention: rank 0 has waited 0\.1 s for all ranks"):
            fam.ring_attention(comm, x, x, x, timeout=0.1)
        done.set()

    fam.run_in_threads(2, run)
