"""Encoders and decoders of sequences, and the search for sentences."""

import itertools

import numpy as np
import pytest

import fastattn as fa
import fastattn.nn
from tests.arrays import same_bits
from tests.nn.gradients import assert_gradients

KINDS = {
    "bahdanau": {"kind": "bahdanau", "attention_size": 5},
    "cho": {"kind": "cho"},
    "sutskever": {"kind": "sutskever", "num_layers": 2},
    "reversed": {"kind": "sutskever", "num_layers": 2, "reverse_source": True},
}
START, END = 0, 1


@pytest.fixture(params=KINDS)
def options(request):
    return KINDS[request.param]


def model(rng, dtype=np.float64, **options):
    return fa.nn.Seq2Seq(7, 6, 4, 8, dtype=dtype, rng=rng, **options)


def sentences(rng, B=3, S=5, T=4):
    """source, target, what follows, lengths."""
    return rng.integers(0, 7, (B, S)), rng.integers(0, 6, (B, T)), rng.integers(0, 6, (B, T)), rng.integers(1, S + 1, B)


def test_forward_and_call_have_the_same_bits(dtype, rng, options):
    m = model(rng, dtype, **options)
    source, target, _, lengths = sentences(rng)
    for n in (None, lengths):
        assert same_bits(m(source, target, n), m.forward(source, target, n)[0])


def test_gradients_equal_finite_differences(rng, options):
    m = model(rng, **options)
    source, target, following, lengths = sentences(rng)
    logits, saved = m.forward(source, target, lengths)
    _, cost = fa.cross_entropy_forward(logits, following)
    dx, grads = m.backward(fa.cross_entropy_backward(1.0, cost), saved)
    assert dx is None
    assert_gradients(lambda: float(fa.cross_entropy(m(source, target, lengths), following)), m.parameters(), grads, rng)


def test_tokens_beyond_the_length_and_later_targets_change_nothing(dtype, rng, options):
    m = model(rng, dtype, **options)
    source, target, _, lengths = sentences(rng)
    whole = m(source, target, lengths)
    other = np.where(np.arange(5) < lengths[:, None], source, (source + 3) % 7)
    assert same_bits(m(other, target, lengths), whole)
    assert same_bits(m(source, target[:, :2], lengths), whole[:, :2])
    for b, n in enumerate(lengths):
        alone = m(source[b : b + 1, :n], target[b : b + 1])
        np.testing.assert_allclose(alone[0], whole[b], rtol=0, atol=32 * np.finfo(dtype).eps)


def test_reading_backwards_is_reading_the_reversed_source(rng):
    m = model(rng, **KINDS["reversed"])
    source, target, _, _ = sentences(rng)
    whole = m(source, target)
    m.reverse_source = False
    assert same_bits(m(source[:, ::-1], target), whole)


def test_weights_are_an_alignment(rng):
    m = model(rng, **KINDS["bahdanau"])
    source, target, _, lengths = sentences(rng)
    logits, weights = m(source, target, lengths, return_weights=True)
    assert weights.shape == (3, 4, 5) and same_bits(logits, m(source, target, lengths))
    np.testing.assert_allclose(weights.sum(-1), 1)
    assert not weights[np.broadcast_to(np.arange(5) >= lengths[:, None, None], weights.shape)].any()
    with pytest.raises(ValueError, match="return_weights needs kind='bahdanau'"):
        model(rng, **KINDS["cho"])(source, target, return_weights=True)


def test_the_probability_of_a_sentence_is_the_product_of_its_tokens(rng, options):
    m = model(rng, **options)
    source, target, following, lengths = sentences(rng)
    following[1, 2] = -100
    p = np.take_along_axis(fa.log_softmax(m(source, target, lengths)), np.maximum(following, 0)[..., None], 2)[..., 0]
    expected = np.where(following == -100, 0, p).sum(1)
    np.testing.assert_allclose(m.log_probability(source, target, following, lengths), expected)


def log_probability(m, source, lengths, tokens):
    """Of one sentence, its end included."""
    target, following = np.array([[START, *tokens]]), np.array([[*tokens, END]])
    return m.log_probability(source, target, following, lengths)[0]


def test_greedy_search_takes_the_most_probable_token_each_time(rng, options):
    m = model(rng, **options)
    source, _, _, lengths = sentences(rng)
    found = m.greedy(source, lengths, start=START, end=END, max_length=6)
    for b, (tokens, score) in enumerate(found):
        written, total = [START], 0.0
        for _ in range(6):
            p = fa.log_softmax(m(source[b : b + 1], [written], lengths[b : b + 1])[0, -1])
            written.append(int(p.argmax()))
            total += p.max()
            if written[-1] == END:
                break
        assert tokens == [t for t in written[1:] if t != END]
        np.testing.assert_allclose(score, total)


def test_a_wide_beam_finds_the_most_probable_sentence(rng, options):
    m = model(rng, **options)
    for name in ("output.weight", "output.bias"):
        m.parameters()[name][...] *= 6  # sentences of very different probability
    source, _, _, lengths = sentences(rng)
    found = m.beam(source, lengths, start=START, end=END, max_length=3, width=6**3)
    words = [t for t in range(6) if t != END]
    for b, (tokens, score) in enumerate(found):
        one = source[b : b + 1], lengths[b : b + 1]
        ended = [list(s) for n in range(3) for s in itertools.product(words, repeat=n)]
        best = max(log_probability(m, *one, s) for s in ended)
        if len(tokens) < 3:
            np.testing.assert_allclose(score, best)
            np.testing.assert_allclose(score, log_probability(m, *one, tokens))
        else:
            assert score >= best
    narrow = m.beam(source, lengths, start=START, end=END, max_length=3, width=2)
    assert all(a[1] >= b[1] - 1e-12 for a, b in zip(found, narrow, strict=True))


def test_sentences_batches_and_targets_may_be_empty(rng, options):
    m = model(rng, **options)
    source, target, _, _ = sentences(rng)
    for empty, written, lengths in ((source[:, :0], target, None), (source, target, [0, 5, 2]),
                                    (source, target[:, :0], None), (source[:0], target[:0], None)):  # fmt: skip
        logits, saved = m.forward(empty, written, lengths)
        _, grads = m.backward(np.ones_like(logits), saved)
        assert logits.shape == (*written.shape, 6)
        assert all(np.isfinite(value).all() for value in (logits, *grads.values()))
        assert len(m.greedy(empty, lengths, start=START, end=END, max_length=3)) == len(written)
    # Of a sentence without tokens the model sees what it sees of one that is not there at all.
    assert same_bits(m(source[:1, :0], target[:1]), m(source[:1], target[:1], [0]))


def test_wrong_arguments_are_named(rng):
    m = model(rng)
    source, target, _, _ = sentences(rng)
    for error, message, call in (
        (ValueError, "kind must be", lambda: model(rng, kind="other")),
        (ValueError, "num_layers must be 1", lambda: model(rng, kind="cho", num_layers=2)),
        (ValueError, r"source must have shape \[B, S\]", lambda: m(source[0], target)),
        (ValueError, r"target must have shape \[B, T\] with the 3 rows of source", lambda: m(source, target[1:])),
        (ValueError, "source_lengths must lie in 0..5", lambda: m(source, target, [6, 1, 1])),
        (ValueError, r"ids must lie in 0\.\.6", lambda: m(source + 7, target)),
        (ValueError, r"ids must lie in 0\.\.5", lambda: m.forward(source, target - 6)),
        (TypeError, "ids must be integers", lambda: m(source + 0.5, target)),
        (ValueError, r"start must lie in 0\.\.5, got 6", lambda: m.greedy(source, start=6, end=1)),
        (ValueError, r"end must lie in 0\.\.5, got -1", lambda: m.greedy(source, start=0, end=-1)),
        (ValueError, r"end must lie in 0\.\.5, got 6", lambda: m.beam(source, start=0, end=6)),
        (ValueError, "width must be at least 1", lambda: m.beam(source, start=0, end=1, width=0)),
        (TypeError, "width must be an integer", lambda: m.beam(source, start=0, end=1, width=2.0)),
        (MemoryError, "beam: sizes must fit .* max_length=", lambda: m.beam(source, start=0, end=1, max_length=2**60)),
        (MemoryError, "sizes must fit .* source=", lambda: m(np.broadcast_to(0, (2**58, 3)), target)),
        (MemoryError, "sizes must fit .* target=", lambda: m(source, np.broadcast_to(0, (3, 2**58)))),
    ):
        with pytest.raises(error, match=message):
            call()
