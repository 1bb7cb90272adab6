"""Errors of modules name what was called and its argument, whatever module or function inside found the fault."""

import numpy as np
import pytest

from fastattn import nn

X = np.ones((2, 5, 8), np.float32)
SIZES = {"d_model": 8, "nhead": 2, "dim_feedforward": 12}


def _encoder():
    return nn.TransformerEncoder(**SIZES, num_layers=2, norm_first=True)


def _decoder():
    return nn.TransformerDecoder(**SIZES, num_layers=2)


def _sentences():
    return nn.Seq2Seq(9, 11, 4, 6)


CALLS = [
    (lambda: nn.Linear(3, 2)(X), "Linear: x must have a last axis of 3"),
    (lambda: nn.Linear(8, 2)(X.astype("f8")), "Linear: x must suit the module, got linear: weight must be float64"),
    (lambda: nn.LayerNorm(3)(X), "LayerNorm: x must suit the module, got layer_norm: weight must have shape"),
    (lambda: nn.Embedding(3, 4)([3]), r"Embedding: ids must lie in 0\.\.2, got 3"),
    (lambda: nn.FeedForward(4, 8)(X), "FeedForward: x must have a last axis of 4"),
    (lambda: _encoder()(X[..., 1:]), "TransformerEncoder: x must suit the module, got"),
    (lambda: _encoder()(X, mask=np.ones((4, 4), bool)), "TransformerEncoder: mask must broadcast"),
    (lambda: _encoder()(X, causal="left"), "TransformerEncoder: causal must be"),
    (lambda: _encoder().backward(X, _encoder().forward(X[:, 1:])[1]), r"TransformerEncoder\.backward: dy must"),
    (lambda: _decoder()(X, X[..., 1:]), "TransformerDecoder: memory must have a last axis of embed_dim, 8, got"),
    (lambda: _decoder().forward(X, X.astype("f8")), "TransformerDecoder: memory must be float32 like the parameters"),
    (lambda: _decoder()(X, X, memory_mask=np.ones((4, 4), bool)), "TransformerDecoder: memory_mask must broadcast"),
    (lambda: _decoder().forward(X, X, memory_mask=np.ones((4, 4), bool)), "TransformerDecoder: memory_mask must broad"),
    (lambda: nn.MultiHeadAttention(8, 2).project(X[..., 1:]), r"MultiHeadAttention\.project: context must have a last"),
    (lambda: _decoder().step(X[..., 1:], _decoder().start(X)), r"TransformerDecoder\.step: x must"),
    (lambda: nn.Transformer(8, 3, 4), "Transformer: nhead must divide d_model, 8, got 3"),
    (lambda: nn.AttentionGRU(3, 4, 6, 5).annotate(np.ones((2, 3, 6))), r"AttentionGRU\.annotate: annotations must"),
    (lambda: _sentences().greedy([[1]], start=99, end=0), r"Seq2Seq\.greedy: start must lie in 0\.\.10, got 99"),
    (lambda: _sentences().beam([[9]], start=1, end=0), r"Seq2Seq\.beam: source and start and end must suit the module"),
    (lambda: _sentences()([[1]], [[11]]), "Seq2Seq: source and target must suit the module, got Embedding: ids"),
]


@pytest.mark.parametrize(("call", "message"), CALLS, ids=[message for _, message in CALLS])
def test_an_error_names_what_was_called(call, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        call()


def test_memory_that_arrays_in_between_do_not_get_is_named(monkeypatch):
    layer = nn.TransformerEncoderLayer(**SIZES)

    def no_memory(*arguments, **options):
        return np.empty(2**59)

    monkeypatch.setattr(layer, "_feed_forward", no_memory)
    with pytest.raises(MemoryError, match=r"^TransformerEncoderLayer: no memory for what is in between \(Unable"):
        layer(X)


def test_errors_of_subclasses_are_their_own():
    class Own(nn.Module):
        def __call__(self, x):
            raise ValueError("other: x must be mine")

    with pytest.raises(ValueError, match=r"^other: x"):
        Own()(1)


def test_a_beam_of_no_sentence_is_empty():
    for width in (1, 2**62):
        assert _sentences().beam(np.zeros((0, 3), int), start=1, end=2, width=width) == []


def test_saved_values_that_change_are_read_once():
    gru = nn.AttentionGRU(3, 4, 6, 5, rng=0)
    (result, last), saved = gru.forward(np.ones((2, 1, 3), np.float32), np.ones((1, 4, 6), np.float32))

    class Changing:
        def __init__(self, array):
            self.seen, self.array = 0, array

        def __array__(self, dtype=None, copy=None):
            self.seen += 1
            return self.array if self.seen == 1 else np.zeros(3)

    grads = (result.y, result.context, last)
    expected = gru.backward(grads, saved)
    for field in ("arguments", "results"):
        for i, part in enumerate(getattr(saved, field)):
            if part is not None:
                parts = [Changing(part) if at == i else other for at, other in enumerate(getattr(saved, field))]
                got = gru.backward(grads, saved._replace(**{field: tuple(parts)}))
                assert all(np.array_equal(got[2][name], expected[2][name]) for name in expected[2])
