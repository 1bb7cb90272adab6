"""Three ways to attend in a batch of sequences of different lengths. All give the same bits."""

import numpy as np

import fastattn as fa

rng = np.random.default_rng(0)
lengths = np.array([5, 12, 9])
batch, heads, longest, size = len(lengths), 4, lengths.max(), 32
q, k, v = rng.standard_normal((3, batch, heads, longest, size), dtype=np.float32)
real = np.arange(longest) < lengths[:, None]  # [batch, longest]: where a token is

# 1. A padding mask, as most frameworks have it: True where a key may be attended to.
masked = fa.attention(q, k, v, mask=real[:, None, None, :])

# 2. Lengths: no work is done for the padding, and outputs beyond a sequence's length are zero.
with_lengths = fa.attention(q, k, v, q_lengths=lengths, kv_lengths=lengths)


# 3. No padding: the tokens of all sequences lie one after another.
def tokens_of(x):
    """[batch, heads, longest, size] to [tokens, heads, size]."""
    return x.swapaxes(1, 2)[real]


starts = np.concatenate([[0], np.cumsum(lengths)])
ragged = fa.attention_varlen(tokens_of(q), tokens_of(k), tokens_of(v), starts, starts)

for name, result in (("mask", tokens_of(masked)), ("lengths", tokens_of(with_lengths))):
    print(f"{name:8} equals ragged bit for bit: {np.array_equal(result, ragged)}")
alone = fa.attention(q[:1, :, :5], k[:1, :, :5], v[:1, :, :5])
print(f"alone    equals ragged bit for bit: {np.array_equal(alone[0].swapaxes(0, 1), ragged[:5])}")

# Recurrent networks take lengths too: the state is that at the last token of each sequence.
lstm = fa.nn.LSTM(heads * size, 16, batch_first=True, rng=rng)
frames = q.swapaxes(1, 2).reshape(batch, longest, -1)
y, (h, c) = lstm(frames, lengths=lengths)
print("state is the output at the last token:", np.array_equal(h[0], y[np.arange(batch), lengths - 1]))
