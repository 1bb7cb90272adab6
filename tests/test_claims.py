"""python -m benchmarks.claims: what its parts compute is what they say, and the page stands alone."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("rich", reason='needs rich: python -m pip install -e ".[bench]"')
pytest.importorskip("matplotlib", reason='needs matplotlib: python -m pip install -e ".[bench]"')
pytest.importorskip("jinja2", reason='needs jinja2: python -m pip install -e ".[bench]"')

from benchmarks.claims import LeftOut, Settings, dates, memory, positions, precision, self_attention, sentences
from benchmarks.claims import __main__ as command
from benchmarks.claims.adam import Adam

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


def test_adam_follows_its_equations():
    parameter, gradient = np.array([1.0, -2.0]), np.array([0.3, 0.4])
    adam, mean, square, expected = Adam({"w": parameter}, rate=0.1, clip=0.25), 0.0, 0.0, parameter.copy()
    for step in (1, 2, 3):
        assert adam.step({"w": gradient}) == pytest.approx(0.5)
        clipped = gradient / 2
        mean, square = 0.9 * mean + 0.1 * clipped, 0.999 * square + 0.001 * clipped**2
        expected -= 0.1 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(parameter, expected, rtol=1e-5)


def test_dates_are_drawn_apart_for_training_and_testing(rng):
    pytest.importorskip("babel", reason='needs babel: python -m pip install -e ".[bench]"')
    drawn = dates.Dates(1)
    days = {held: {iso for _, iso in drawn.sentences(500, 1, rng, held)} for held in (False, True)}
    assert not days[False] & days[True]
    pairs = list(drawn.sentences(5, 3, rng, True))
    source, lengths, seen, wanted = drawn.batch(pairs)
    assert (source[np.arange(source.shape[1]) >= lengths[:, None]] == 0).all()
    assert (source[np.arange(source.shape[1]) < lengths[:, None]] > 0).all(), "every letter is in the alphabet"
    for (text, iso), row, target in zip(pairs, seen, wanted, strict=True):
        assert text.count("; ") == 2
        assert row[0] == dates.START
        assert target[-1] == dates.END
        assert "".join(dates.TARGET[token] for token in target[:-1]) == iso
        assert (row[1:] == target[:-1]).all()


def test_what_is_said_of_dates_follows_the_numbers():
    level = [1.0, 0.99]
    assert "both fixed vectors fall" in dates.findings({"bahdanau": level, "cho": [1, 0.3], "sutskever": [1, 0.5]})[-1]
    assert "(Cho) falls" in dates.findings({"bahdanau": level, "cho": [1, 0.3], "sutskever": level})[-1]
    assert "do not fall" in dates.findings({"bahdanau": level, "cho": level, "sutskever": level})[-1]
    assert "too short" in dates.findings({kind: [0.5, 0.1] for kind in dates.KINDS})[-1]
    assert "99.0 % in sentences of 2" in dates.findings({"bahdanau": level, "cho": level, "sutskever": level})[0]


@pytest.mark.parametrize(("part", "package"), [(dates, "babel"), (sentences, "tokenizers")])
def test_parts_without_their_packages_are_left_out_with_a_reason(monkeypatch, part, package):
    monkeypatch.setattr(part, "find_spec", lambda _: None)
    with pytest.raises(LeftOut, match=package):
        part.measure(QUICK, lambda _: None)
