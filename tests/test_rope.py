"""Rotary positions."""

import numpy as np
import pytest

import fastattn as fa
from tests.arrays import LAYOUTS, same_bits
from tests.errors import ErrorRule
from tests.specification import exact, plain

SIZES = [2, 4, 6, 14, 16, 18, 30, 32, 34, 64, 128, 130]
both = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "interleaved"])


@both
@pytest.mark.usefixtures("isa", "threads")
def test_rotations_keep_the_error_rule(dtype, rng, interleaved):
    rule = ErrorRule()
    for n in SIZES:
        x = rng.standard_normal((2, 3, 9, n), np.float32).astype(dtype)
        positions = rng.integers(0, 500, 9)
        got = fa.rope(x, positions, interleaved=interleaved)
        right = exact(dtype).rope(x, positions, interleaved=interleaved)
        rule.add(got, plain.rope(x, positions, interleaved=interleaved), right)
    rule.check()


@both
@pytest.mark.usefixtures("isa")
def test_the_gradient_turns_back(dtype, rng, interleaved):
    dy = rng.standard_normal((2, 9, 34)).astype(dtype)
    positions = np.arange(9)
    _, saved = fa.rope_forward(dy, positions, base=500.0, interleaved=interleaved)
    assert same_bits(fa.rope_backward(dy, saved), fa.rope(dy, -positions, base=500.0, interleaved=interleaved))


@both
def test_scores_depend_on_distances_alone(rng, interleaved):
    q, k = rng.standard_normal((2, 5, 64))
    options = {"interleaved": interleaved}
    near = fa.rope(q, np.arange(5), **options) @ fa.rope(k, np.arange(5), **options).T
    far = fa.rope(q, np.arange(5) + 1000, **options) @ fa.rope(k, np.arange(5) + 1000, **options).T
    np.testing.assert_allclose(near, far, atol=1e-11)


def test_the_two_forms_are_one_up_to_the_order_of_columns(rng):
    x = rng.standard_normal((5, 12))
    order = np.concatenate([np.arange(0, 12, 2), np.arange(1, 12, 2)])
    rotated = fa.rope(x, np.arange(5), interleaved=True)
    assert np.allclose(rotated[:, order], fa.rope(x[:, order], np.arange(5)), rtol=0, atol=1e-15)


@both
@pytest.mark.usefixtures("isa")
def test_positions_broadcast_and_a_row_does_not_depend_on_the_others(rng, interleaved):
    x = rng.standard_normal((2, 7, 3, 18), np.float32)
    positions = rng.integers(0, 99, (2, 7))
    whole = fa.rope(x, positions[..., None], interleaved=interleaved)
    for b, i, h in np.ndindex(2, 7, 3):
        assert same_bits(fa.rope(x[b, i, h], positions[b, i], interleaved=interleaved), whole[b, i, h])
    with fa.num_threads(3):
        assert same_bits(fa.rope(x, positions[..., None], interleaved=interleaved), whole)
    for other in LAYOUTS.values():
        assert same_bits(fa.rope(other(x), positions[..., None], interleaved=interleaved), whole)
    out = x.copy()
    assert fa.rope(out, positions[..., None], interleaved=interleaved, out=out) is out
    assert same_bits(out, whole)


@both
@pytest.mark.usefixtures("isa")
def test_16_bits_are_rounded_once(rng, interleaved):
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    for kind in (np.float16, bf16):
        x = rng.standard_normal((9, 34), np.float32).astype(kind)
        wide = fa.rope(x.astype(np.float32), np.arange(9), interleaved=interleaved)
        got = fa.rope(x, np.arange(9), interleaved=interleaved)
        assert same_bits(got.view(np.uint16), wide.astype(kind).view(np.uint16))


@both
@pytest.mark.parametrize("shape", [(), (7, 1), (2, 7, 3), (2, 1, 1)], ids=str)
@pytest.mark.usefixtures("isa", "threads")
def test_given_cosines_and_sines_keep_the_error_rule(dtype, rng, interleaved, shape):
    rule = ErrorRule()
    for n in SIZES:
        x = rng.standard_normal((2, 7, 3, n), np.float32).astype(dtype)
        cos, sin = (rng.standard_normal((*shape, n // 2), np.float32).astype(dtype) for _ in range(2))
        got = fa.rope(x, cos=cos, sin=sin, interleaved=interleaved)
        right = exact(dtype).rotate_pairs(x, cos, sin, interleaved)
        rule.add(got, plain.rotate_pairs(x, cos, sin, interleaved), right)
        dx = fa.rope_backward(x, fa.rope_forward(x, cos=cos, sin=sin, interleaved=interleaved)[1])
        assert same_bits(dx, fa.rope(x, cos=cos, sin=-sin, interleaved=interleaved))
    rule.check()


@both
@pytest.mark.usefixtures("isa")
def test_given_tables_of_positions_give_the_bits_of_positions(dtype, rng, interleaved):
    x = rng.standard_normal((2, 9, 34)).astype(dtype)
    wide = np.float64 if dtype == np.float32 else np.longdouble
    angle = np.arange(9, dtype=wide)[:, None] * wide(10000) ** (-np.arange(0, 34, 2).astype(wide) / 34)
    tables = {"cos": np.cos(angle).astype(dtype), "sin": np.sin(angle).astype(dtype)}
    expected = fa.rope(x, np.arange(9), interleaved=interleaved)
    assert same_bits(fa.rope(x, **tables, interleaved=interleaved), expected)
    for other in LAYOUTS.values():
        given = {name: other(table) for name, table in tables.items()}
        assert same_bits(fa.rope(other(x), **given, interleaved=interleaved), expected)


@both
@pytest.mark.usefixtures("isa")
def test_tables_beside_16_bits_may_be_float32(rng, interleaved):
    bf16 = pytest.importorskip("ml_dtypes").bfloat16
    for kind in (np.float16, bf16):
        x, cos, sin = (rng.standard_normal((9, n), np.float32).astype(kind) for n in (34, 17, 17))
        wide = {"cos": cos.astype(np.float32), "sin": sin.astype(np.float32)}
        expected = fa.rope(x.astype(np.float32), **wide, interleaved=interleaved).astype(kind).view(np.uint16)
        assert same_bits(fa.rope(x, **wide, interleaved=interleaved).view(np.uint16), expected)
        assert same_bits(fa.rope(x, cos=cos, sin=sin, interleaved=interleaved).view(np.uint16), expected)


@pytest.mark.parametrize("lead", [(2, 3, 7), (3, 7), (7,), (1, 1, 7), (2, 1, 7), (3, 1), ()])
def test_tables_in_any_form_give_the_same_bits(dtype, rng, lead):
    x = rng.standard_normal((2, 3, 7, 18)).astype(dtype)
    cos, sin = rng.standard_normal((2, *lead, 9)).astype(dtype)
    whole = [np.ascontiguousarray(np.broadcast_to(table, (2, 3, 7, 9))) for table in (cos, sin)]
    expected = fa.rope(x, cos=whole[0], sin=whole[1])
    for form in (np.asarray, np.asfortranarray, lambda table: table.tolist() if dtype == np.float64 else table):
        assert same_bits(fa.rope(x, cos=form(cos), sin=form(sin)), expected)
        _, saved = fa.rope_forward(x, cos=form(cos), sin=form(sin))
        assert same_bits(fa.rope_backward(x, saved), fa.rope(x, cos=whole[0], sin=-whole[1]))


def test_out_may_share_memory_with_the_tables(dtype, rng):
    x = rng.standard_normal((4, 12)).astype(dtype)
    memory = rng.standard_normal((3, 4, 12)).astype(dtype)
    for place in ((0, 1), (1, 2), (2, 0)):
        tables = memory.copy()
        cos, sin = tables[place[0], :, :6].copy(), tables[place[1], :, :6].copy()
        expected = fa.rope(x, cos=cos, sin=sin)
        flat = tables.reshape(-1)
        own_cos, own_sin = flat[:24].reshape(4, 6), flat[24:48].reshape(4, 6)
        own_cos[:], own_sin[:] = cos, sin
        out = flat[12 * place[0] : 12 * place[0] + 48].reshape(4, 12)
        assert same_bits(fa.rope(x, cos=own_cos, sin=own_sin, out=out), expected)


def test_sizes_with_tables_may_be_zero():
    for shape in ((0, 4), (3, 0), (2, 0, 4)):
        table = np.ones((shape[-2], shape[-1] // 2))
        assert fa.rope(np.ones(shape), cos=table, sin=table).shape == shape


HALF = np.ones((2, 2))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, TypeError, "rope: positions must be given, or cos and sin, got none"),
        ({"cos": HALF}, TypeError, "rope: positions must be given, or cos and sin, got cos"),
        ({"positions": [0, 1], "cos": HALF, "sin": HALF}, TypeError, "got positions and cos and sin"),
        ({"cos": HALF, "sin": HALF[:1]}, ValueError, r"rope: sin must have the shape of cos, \(2, 2\), got \(1, 2\)"),
        ({"cos": HALF, "sin": np.ones((2, 4))}, ValueError, r"rope: sin must broadcast to \(2, 2\), half the columns"),
        ({"cos": np.ones((3, 2)), "sin": HALF}, ValueError, r"rope: cos must broadcast to \(2, 2\).*got \(3, 2\)"),
        ({"cos": np.float64(1), "sin": HALF}, ValueError, "rope: cos must broadcast"),
        ({"cos": HALF.astype(np.float32), "sin": HALF}, TypeError, "rope: cos must be float64 like x, got float32"),
        ({"cos": HALF, "sin": HALF.astype(int)}, TypeError, "rope: sin must be float32, float64"),
    ],
)
def test_wrong_tables_are_named(options, error, message):
    with pytest.raises(error, match=message):
        fa.rope(np.ones((2, 4)), **options)


def test_sizes_may_be_zero():
    for shape in ((0, 4), (3, 0), (2, 0, 4)):
        assert fa.rope(np.ones(shape), np.arange(shape[-2])).shape == shape


@pytest.mark.parametrize(
    ("x", "positions", "options", "error", "message"),
    [
        (np.ones((2, 3)), [0, 1], {}, ValueError, r"rope: x must have a last axis of even size, got shape \(2, 3\)"),
        (np.ones((2, 4)), [0, 1, 2], {}, ValueError, r"rope: positions must broadcast to \(2,\).*got \(3,\)"),
        (np.ones((2, 4)), [0, np.inf], {}, ValueError, r"rope: positions must be finite, got inf"),
        (np.ones((2, 4)), ["a", "b"], {}, TypeError, r"rope: positions must be integers or floats"),
        (np.ones((2, 4)), [0, 1], {"base": 0}, ValueError, r"rope: base must be positive"),
        (np.ones((2, 4), int), [0, 1], {}, TypeError, r"rope: x must be float32"),
        (np.ones((2, 4)), [0, 1], {"out": np.ones((2, 3))}, ValueError, r"rope: out must have shape \(2, 4\)"),
    ],
)
def test_wrong_arguments_are_named(x, positions, options, error, message):
    with pytest.raises(error, match=message):
        fa.rope(x, positions, **options)


def test_a_wrong_saved_is_named():
    with pytest.raises(TypeError, match=r"rope_backward: saved must be what rope_forward returned, got list"):
        fa.rope_backward(np.ones((2, 4)), [])
