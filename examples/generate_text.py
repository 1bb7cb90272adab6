"""A language model of characters is trained on a sentence, then writes it with one KVCache for each layer."""

import numpy as np

import fastattn as fa

TEXT = "the quick brown fox jumps over the lazy dog. "
LETTERS = sorted(set(TEXT))
WIDTH, HEADS, LAYERS, CONTEXT = 32, 4, 2, 48
rng = np.random.default_rng(0)
ids = np.array([LETTERS.index(letter) for letter in TEXT * 3])
embedding = fa.nn.Embedding(len(LETTERS), WIDTH, rng=rng)
positions = fa.nn.SinusoidalPositions(WIDTH)
layers = [fa.nn.TransformerEncoderLayer(WIDTH, HEADS, 64, norm_first=True, rng=rng) for _ in range(LAYERS)]
output = fa.nn.Linear(WIDTH, len(LETTERS), rng=rng)
modules = [output, *reversed(layers), embedding]  # in the order in which gradients come
squares = [{name: np.zeros_like(p) for name, p in module.parameters().items()} for module in modules]


def train_step(rate=2e-3):
    starts = rng.integers(0, len(TEXT), 16)
    batch = ids[starts[:, None] + np.arange(CONTEXT + 1)]
    x, saved_embedding = embedding.forward(batch[:, :-1])
    x, saved = positions(x), []
    for layer in layers:
        x, of_layer = layer.forward(x, causal=True)
        saved.append(of_layer)
    logits, saved_output = output.forward(x)
    loss, saved_loss = fa.cross_entropy_forward(logits, batch[:, 1:])
    dx = fa.cross_entropy_backward(1.0, saved_loss)
    for module, of_module, square in zip(modules, [saved_output, *saved[::-1], saved_embedding], squares, strict=True):
        dx, grads = module.backward(dx, of_module)
        for name, parameter in module.parameters().items():
            square[name] += 0.05 * (grads[name] ** 2 - square[name])
            parameter[...] -= rate * grads[name] / (np.sqrt(square[name]) + 1e-8)
    return float(loss)


def next_logits(tokens, caches):
    """Logits after the last of some tokens; the caches hold the keys and values of those before."""
    x = positions(embedding(tokens), offset=int(caches[0].lengths[0]))
    for layer, cache in zip(layers, caches, strict=True):
        x = x + layer.self_attn(layer.norm1(x), cache=cache)
        x = x + layer.linear2(layer.linear1(layer.norm2(x), activation=layer.activation))
    return output(x[:, -1])


losses = [train_step() for _ in range(300)]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}")
caches = [fa.KVCache(1, HEADS, WIDTH // HEADS, dtype="float32") for _ in layers]
text = "the quick"
tokens = np.array([[LETTERS.index(letter) for letter in text]])
for _ in range(36):
    tokens = next_logits(tokens, caches).argmax(-1)[:, None]  # one token a step: nothing is computed again
    text += LETTERS[tokens.item()]
print(text)
