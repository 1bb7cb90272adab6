"""Transformers step by step: what a cache holds gives the bits of the whole."""

import numpy as np
import pytest

import fastattn as fa
from fastattn import nn
from tests.arrays import same_bits

LENGTHS = [3, 7, 5]
CACHES = {"plain": {}, "of a capacity": {"capacity": 12}, "paged": {"page_size": 4}}


def decoder(rng, dtype=np.float32, **options):
    return nn.TransformerDecoder(24, 3, 40, num_layers=2, final_norm=True, dtype=dtype, rng=rng, **options)


def sample(rng, dtype=np.float32):
    """Target [3, 12, 24] and memory [3, 7, 24]."""
    return (rng.standard_normal((3, n, 24), np.float32).astype(dtype) for n in (12, 7))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}, {"bias": False}], ids=str)
@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_any_number_of_tokens_at_a_time_gives_the_bits_of_the_whole(dtype, rng, options, of_cache):
    m = decoder(rng, dtype, **options)
    x, memory = sample(rng, dtype)
    whole = m(x, memory, memory_lengths=LENGTHS)
    for parts in ([1] * 12, [5, 1, 2, 4], [0, 9, 3], [12]):
        cache = m.start(memory, memory_lengths=LENGTHS, **of_cache)
        ends = np.cumsum(parts)
        steps = [m.step(x[:, end - n : end], cache) for n, end in zip(parts, ends, strict=True)]
        assert same_bits(np.concatenate(steps, axis=1), whole)
        assert cache.length == 12


def test_a_cache_of_bytes_is_close(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    cache = m.start(memory, dtype="int8")
    steps = np.concatenate([m.step(x[:, i : i + 1], cache) for i in range(12)], axis=1)
    assert not same_bits(steps, m(x, memory))
    assert np.sum(steps * m(x, memory)) / np.sum(steps * steps) == pytest.approx(1, abs=0.01)


def test_memory_beyond_its_lengths_and_later_changes_do_not_count(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    lengths = np.array(LENGTHS)
    expected = m(x[:, :1], memory, memory_lengths=lengths)
    memory[np.arange(7) >= lengths[:, None]] = np.nan
    cache = m.start(memory, memory_lengths=lengths)
    memory[...], lengths[...] = 0, 1
    assert same_bits(m.step(x[:, :1], cache), expected)


def test_a_transformer_writes_the_same_tokens_step_by_step_as_from_the_beginning(rng):
    model = nn.Transformer(24, 3, 40, num_encoder_layers=1, num_decoder_layers=2, output_size=11, rng=rng)
    words, positions = nn.Embedding(11, 24, rng=rng), nn.SinusoidalPositions(24)
    source = positions(words(rng.integers(0, 11, (3, 7))))
    cache, tokens = model.start(source, source_lengths=LENGTHS), np.zeros((3, 1), np.int64)
    for _ in range(10):
        logits = model.step(positions(words(tokens[:, -1:]), offset=cache.length), cache)
        whole = model(source, positions(words(tokens)), source_lengths=LENGTHS)
        assert same_bits(logits[:, 0], whole[:, -1])
        tokens = np.append(tokens, logits.argmax(-1), axis=1)


def test_a_projected_context_gives_the_bits_of_the_array(dtype, rng):
    m = nn.MultiHeadAttention(24, 4, kv_heads=2, dtype=dtype, rng=rng)
    x, context = sample(rng, dtype)
    projected = m.project(context, LENGTHS)
    assert same_bits(m(x, projected), m(x, context, lengths=LENGTHS))
    mask = rng.random((12, 7)) < 0.7
    assert same_bits(m(x, m.project(context), mask=mask), m(x, context, mask=mask))


@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_rejected_tokens_are_taken_back_in_every_layer(rng, of_cache):
    m = decoder(rng)
    x, memory = sample(rng)
    whole = m(x, memory, memory_lengths=LENGTHS)
    cache = m.start(memory, memory_lengths=LENGTHS, **of_cache)
    m.step(x[:, :4], cache)
    drafted = rng.standard_normal((3, 5, 24), np.float32)
    m.step(drafted, cache)
    cache.crop(4)
    assert cache.length == 4
    assert same_bits(m.step(x[:, 4:7], cache), whole[:, 4:7])
    m.step(drafted, cache)
    cache.crop([7, 5, 0])  # each sequence to its own
    step = np.stack([x[0, 7], x[1, 5], x[2, 0]])[:, None]
    assert same_bits(m.step(step, cache)[:, 0], np.stack([whole[0, 7], whole[1, 5], whole[2, 0]]))
    own = cache.layers[0]
    own.crop(0)
    assert own.target.lengths.tolist() == [0, 0, 0]
    assert cache.layers[1].target.lengths.tolist() == [8, 6, 1]


@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_what_cannot_be_taken_back_is_named_and_changes_no_layer(rng, of_cache):
    m = decoder(rng)
    x, memory = sample(rng)
    cache = m.start(memory, **of_cache)
    m.step(x[:, :4], cache)
    cache.layers[1].crop([4, 1, 4])
    for wrong, message in (
        ([0, 2, 0], r"^crop: lengths must lie in 0\.\.1 for sequence 1, got 2"),
        ([0, 0], r"^crop: lengths must be an integer or have shape \(3,\)"),
        (5, r"^crop: lengths must lie in 0\.\.4 for sequence 0"),
        (-1, r"^crop: lengths must lie in"),
        ("a", r"^crop: lengths must be integers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            cache.crop(wrong)
        assert [layer.target.lengths.tolist() for layer in cache.layers] == [[4, 4, 4], [4, 1, 4]]


def test_a_step_that_is_refused_leaves_the_cache_as_it_was(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    cache = m.start(memory, capacity=2)
    m.step(x[:, :1], cache)
    for wrong, error in ((x[:2, :1], ValueError), (x[:, :2], ValueError), (x[:, :1, :5], ValueError),
                         (x[:, :1].astype(np.float64), TypeError), (x[:, 0], ValueError)):  # fmt: skip
        with pytest.raises(error):
            m.step(wrong, cache)
        assert [layer.target.lengths.tolist() for layer in cache.layers] == [[1, 1, 1]] * 2
    assert same_bits(m.step(x[:, 1:2], cache), m(x[:, :2], memory)[:, 1:])


def test_wrong_arguments_are_named(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    with pytest.raises(ValueError, match=r"TransformerDecoder\.step: cache must be of 2 layers, got 1"):
        m.step(x, nn.TransformerDecoder(24, 3, 40, num_layers=1).start(memory))
    attention = m.layers[0].multihead_attn
    with pytest.raises(ValueError, match=r"lengths must be None with a projected context"):
        attention(x, attention.project(memory), lengths=LENGTHS)
    with pytest.raises(ValueError, match=r"TransformerDecoder\.start: memory must have 3 axes"):
        m.start(memory[0])
    with pytest.raises(ValueError, match=r"lengths must"):
        m.start(memory, memory_lengths=[1, 2])
    with pytest.raises(ValueError, match=r"lengths must"):
        m.start(memory, memory_lengths=[1, 2, 8])
    with pytest.raises(TypeError, match=r"TransformerDecoder\.start: dtype must be"):
        m.start(memory, dtype="int16")


def test_a_memory_without_tokens_gives_nothing_and_later_tokens_go_on(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    for empty, lengths in ((memory[:, :0], None), (memory, [0, 0, 0])):
        cache = m.start(empty, memory_lengths=lengths)
        steps = [m.step(x[:, i : i + 1], cache) for i in range(3)]
        assert same_bits(np.concatenate(steps, axis=1), m(x[:, :3], empty, memory_lengths=lengths))
    cache = m.start(memory[:0])
    assert m.step(x[:0, :2], cache).shape == (0, 2, 24) and cache.length == 0


def test_a_decoder_without_layers_has_an_empty_cache():
    m = nn.TransformerDecoder(8, 2, 16, num_layers=0)
    x = np.ones((1, 2, 8), np.float32)
    cache = m.start(x)
    assert same_bits(m.step(x, cache), x) and cache.length == cache.nbytes == 0
    assert fa.nn.TransformerDecoder(8, 2, 16, num_layers=1).start(x).nbytes > 0


@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_selected_sequences_have_the_bits_of_a_call_with_their_tokens(rng, of_cache):
    m = decoder(rng)
    x, memory = sample(rng)
    cache = m.start(memory, memory_lengths=LENGTHS, **of_cache)
    m.step(x[:, :5], cache)
    for chosen in ([2, 0, 1], [1, 1, 0, 2, 1], [2], []):
        selected = cache.select(chosen)
        steps = [m.step(x[chosen, i : i + 1], selected) for i in range(5, 8)]
        whole = m(x[chosen, :8], memory[chosen], memory_lengths=np.array(LENGTHS)[chosen])
        assert same_bits(np.concatenate(steps, axis=1), whole[:, 5:])
    assert same_bits(m.step(x[:, 5:6], cache), m(x[:, :6], memory, memory_lengths=LENGTHS)[:, 5:])


def test_the_memory_of_each_place_may_be_kept(rng):
    m = decoder(rng)
    x, memory = sample(rng)
    cache = m.start(memory)
    m.step(x[:, :2], cache)
    selected = cache.select([2, 2, 0], keep_memory=True)
    assert all(a.memory is b.memory for a, b in zip(cache.layers, selected.layers, strict=True))
    same = m.start(np.repeat(memory[:1], 3, axis=0))
    m.step(x[:, :2], same)
    kept, copied = same.select([2, 2, 0], keep_memory=True), same.select([2, 2, 0])
    assert same_bits(m.step(x[:, 2:3], kept), m.step(x[:, 2:3], copied))
    with pytest.raises(ValueError, match=r"select: sequences must have the 3 sequences of the memory.*got 2"):
        cache.select([0, 1], keep_memory=True)
    with pytest.raises(ValueError, match=r"select: sequences must lie in 0\.\.2"):
        cache.select([3])


@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_beam_search_with_a_cache_finds_what_it_finds_from_the_beginning(rng, of_cache):
    model = nn.Transformer(24, 3, 40, num_encoder_layers=1, num_decoder_layers=2, output_size=11, rng=rng)
    words, positions, width, steps = nn.Embedding(11, 24, rng=rng), nn.SinusoidalPositions(24), 3, 8
    source = np.repeat(positions(words(rng.integers(0, 11, (1, 7)))), width, axis=0)

    def search(logits_of, select):
        tokens, scores = np.zeros((width, 1), np.int64), np.array([0, -np.inf, -np.inf])
        for _ in range(steps):
            total = scores[:, None] + fa.log_softmax(logits_of(tokens)).astype(np.float64)
            best = np.argsort(-total, axis=None, kind="stable")[:width]
            parents, last = np.divmod(best, 11)
            select(parents)
            tokens, scores = np.append(tokens[parents], last[:, None], axis=1), total.ravel()[best]
            changed.append(parents.tolist() != list(range(width)))
        return tokens, scores

    def step(tokens):
        return model.step(positions(words(tokens[:, -1:]), offset=caches[-1].length), caches[-1])[:, 0]

    changed, caches = [], [model.start(source, **of_cache)]
    found = search(step, lambda parents: caches.append(caches[-1].select(parents, keep_memory=True)))
    assert any(changed[1:])
    whole = search(lambda tokens: model(source, positions(words(tokens)))[:, -1], lambda _: None)
    assert np.array_equal(found[0], whole[0]) and same_bits(found[1], whole[1])


@pytest.mark.parametrize("of_cache", CACHES.values(), ids=CACHES)
def test_a_step_without_memory_leaves_all_caches_as_they_were_wherever_it_fails(rng, of_cache, monkeypatch):
    model = nn.Transformer(24, 3, 40, num_encoder_layers=0, num_decoder_layers=2, output_size=11, rng=rng)
    x, memory = sample(rng)
    cache, expected = model.start(memory, **of_cache), model.start(memory)
    model.step(x[:, :3], cache)
    model.step(x[:, :3], expected)
    expected = model.step(x[:, 3:8], expected)
    calls = 0

    def failing(function, at):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == at:
                raise MemoryError
            return function(*arguments, **options)

        return call

    for at in range(1, 100):
        calls = 0
        with monkeypatch.context() as patch:
            for kind, name in ((fa.KVCache, "append"), (fa.KVCache, "attend"), (nn.Linear, "__call__"),
                               (nn.MultiHeadAttention, "__call__"), (nn.LayerNorm, "after_sum")):  # fmt: skip
                patch.setattr(kind, name, failing(getattr(kind, name), at))
            try:
                y = model.step(x[:, 3:8], cache)
            except MemoryError:
                pass
            else:
                break
        assert [layer.target.lengths.tolist() for layer in cache.layers] == [[3, 3, 3]] * 2
    assert at > 20 and same_bits(y, expected)
    assert cache.length == 8
