"""A Bahdanau encoder-decoder learns to write backwards; its alignment shows which word it reads for each it writes.

With matplotlib the alignment becomes alignment.png, else it is printed.
"""

import sys
from importlib.util import find_spec

import numpy as np

import fastattn as fa

WORDS, LENGTH, START, END = 14, 7, 0, 1
rng = np.random.default_rng(0)
model = fa.nn.Seq2Seq(WORDS, WORDS, 24, 48, kind="bahdanau", rng=rng)
second_moment = {name: np.zeros_like(p) for name, p in model.parameters().items()}


def step(rate=3e-3):
    source = rng.integers(2, WORDS, (64, LENGTH))
    target = source[:, ::-1]
    seen = np.pad(target, ((0, 0), (1, 0)), constant_values=START)
    following = np.pad(target, ((0, 0), (0, 1)), constant_values=END)
    logits, saved = model.forward(source, seen)
    loss, saved_loss = fa.cross_entropy_forward(logits, following)
    _, grads = model.backward(fa.cross_entropy_backward(1.0, saved_loss), saved)
    for name, parameter in model.parameters().items():
        second_moment[name] += 0.05 * (grads[name] ** 2 - second_moment[name])
        parameter[...] -= rate * grads[name] / (np.sqrt(second_moment[name]) + 1e-8)
    return float(loss)


for i in range(1, 301):
    loss = step()
    if i % 100 == 0:
        print(f"step {i}: loss {loss:.3f}")

source = rng.integers(2, WORDS, (1, LENGTH))
seen = np.pad(source[:, ::-1], ((0, 0), (1, 0)), constant_values=START)
_, weights = model(source, seen, return_weights=True)  # [batch, written, read]
alignment = weights[0, :-1]
print("reads from the end to the begin:", (alignment.argmax(-1) == np.arange(LENGTH)[::-1]).all())
if find_spec("matplotlib") and "--print" not in sys.argv:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4, 4))
    axes.imshow(alignment, cmap="Greys", vmin=0, vmax=1)
    axes.set(xlabel="word read", ylabel="word written", xticks=range(LENGTH), xticklabels=source[0])
    axes.set(yticks=range(LENGTH), yticklabels=source[0, ::-1])
    figure.savefig("alignment.png", dpi=150, bbox_inches="tight")
else:
    print(np.round(alignment, 2))
