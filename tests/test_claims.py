"""python -m benchmarks.claims: what its parts compute is what they say, and the page stands alone."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("rich", reason='needs rich: python -m pip install -e ".[bench]"')
pytest.importorskip("matplotlib", reason='needs matplotlib: python -m pip install -e ".[bench]"')
pytest.importorskip("jinja2", reason='needs jinja2: python -m pip install -e ".[bench]"')

from benchmarks.claims import Settings, memory, positions, precision, self_attention
from benchmarks.claims import __main__ as command

QUICK = Settings(quick=True)


def test_the_double_loop_numpy_and_the_kernel_compute_the_same(rng):
    q, k, v = (rng.standard_normal((9, 5)) for _ in range(3))
    expected = self_attention.double_loop(q, k, v)
    for form in (self_attention.in_numpy, self_attention.in_one_call):
        np.testing.assert_allclose(form(q, k, v), expected, rtol=1e-12)


@pytest.mark.parametrize("name", memory.NAMES)
def test_gradients_are_listed_by_distance_as_parts_of_the_nearest(name, rng):
    x, direction = rng.standard_normal((6, 2, memory.WIDTH)), rng.standard_normal((2, memory.WIDTH))
    dx = memory.attention(x, direction, rng) if name == "attention" else memory.recurrent(name, x, direction, rng)
    assert dx.shape == x.shape
    norms = memory.norms_by_distance(dx)
    assert norms[0] == 1
    assert norms[3] == pytest.approx(np.linalg.norm(dx[2], axis=-1).mean() / np.linalg.norm(dx[5], axis=-1).mean())
    assert (norms[1:] > 0).all()


def test_positions_say_what_their_table_shows():
    part = positions.measure(QUICK, lambda _: None)
    products = part.data["products_of_distance"]
    assert products[0] == pytest.approx(positions.COLUMNS / 2)
    assert max(products[1:]) < products[0]


def test_the_verdict_on_precision_follows_the_numbers():
    assert "do not grow" in precision._verdict(1.2, 0.9)
    assert "of attention in" in precision._verdict(3, 1)
    assert "of attention and of the LSTM in" in precision._verdict(3, 3)


def test_lower_precision_has_larger_errors(rng):
    errors = precision.attention_errors(40, rng)
    assert errors["float32"] < 1e-6 < errors["float16"] < errors["int8 keys and values"] < 0.05
    by_step = precision.lstm_errors(20, rng)
    assert (by_step["float32 weights"] < by_step["bfloat16 weights"]).all()
    assert by_step["int8 weights"].max() < 0.05


def test_the_page_needs_no_other_file_and_shows_every_part(tmp_path, capsys):
    assert command.main(["--quick", "--only", "memory,positions,precision", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "claims.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:|//)|@import|url\((?!#)""", page)
    assert page.count("<svg") == 4
    assert set(re.findall(r'<h2 id="(\w+)"', page)) == {"memory", "positions", "precision"}
    data = json.loads((tmp_path / "claims.json").read_text())
    assert set(data["parts"]) == {"memory", "positions", "precision"}
    for part in data["parts"].values():
        assert part["findings"]
        assert part["data"]
    assert "claims.html" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--only", "memory,nonsense"], ["--seed", "-1"]], ids=" ".join)
def test_bad_arguments_end_with_a_message(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert error.value.code == 2
    assert arguments[0] in capsys.readouterr().err
