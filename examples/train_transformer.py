"""A small Transformer learns to write a sequence backwards. Gradients come by parameter name; Adam is eight lines."""

import numpy as np

import fastattn as fa

WORDS, LENGTH, BATCH, START = 12, 6, 64, 0
rng = np.random.default_rng(0)
model = fa.nn.Transformer(32, 4, 64, num_encoder_layers=2, num_decoder_layers=2, output_size=WORDS, rng=rng)
words, positions = fa.nn.Embedding(WORDS, 32, rng=rng), fa.nn.SinusoidalPositions(32)
parameters = model.parameters() | {"words": words.parameters()["weight"]}
moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in parameters.items()}


def adam(grads, step, rate=2e-3, beta1=0.9, beta2=0.99):
    for name, parameter in parameters.items():
        m, v = moments[name]
        m += (1 - beta1) * (grads[name] - m)
        v += (1 - beta2) * (grads[name] ** 2 - v)
        parameter[...] -= rate * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + 1e-8)


def shifted(target):
    """What the decoder sees when it writes each word: the words before."""
    return np.concatenate([np.full((len(target), 1), START), target[:, :-1]], axis=1)


for step in range(1, 201):
    source = rng.integers(1, WORDS, (BATCH, LENGTH))
    target = source[:, ::-1]
    x, saved_source = words.forward(source)
    y, saved_target = words.forward(shifted(target))
    logits, saved = model.forward(positions(x), positions(y))
    loss, saved_loss = fa.cross_entropy_forward(logits, target)
    (dx, dy), grads = model.backward(fa.cross_entropy_backward(1.0, saved_loss), saved)
    grads["words"] = sum(words.backward(d, s)[1]["weight"] for d, s in ((dx, saved_source), (dy, saved_target)))
    adam(grads, step)
    if step % 50 == 0:
        print(f"step {step}: loss {float(loss):.3f}")

# Write word by word: the cache of each layer holds the keys and values of what was read and written.
source = rng.integers(1, WORDS, (4, LENGTH))
cache = model.start(positions(words(source)))
written = np.full((4, 1), START)
for _ in range(LENGTH):
    logits = model.step(positions(words(written[:, -1:]), offset=cache.length), cache)
    written = np.append(written, logits.argmax(-1), axis=1)
print("read   ", *source[0])
print("written", *written[0, 1:])
