"""Who attends to whom: the options of attention as pictures, drawn from the library's own probabilities."""

import numpy as np
from matplotlib import pyplot as plt

import fastattn as fa

QUERIES, KEYS = 6, 10
PICTURES = {
    "causal='top-left'": {"causal": "top-left"},
    "causal='bottom-right'": {"causal": "bottom-right"},
    "window=(2, 1)": {"window": (2, 1)},
    "causal, window=(3, 0)": {"causal": "bottom-right", "window": (3, 0)},
    "kv_lengths=[7]": {"kv_lengths": [7]},
    "q_lengths=[4], causal": {"q_lengths": [4], "causal": "bottom-right"},
    "mask (bool)": {"mask": np.add.outer(np.arange(QUERIES), np.arange(KEYS)) % 3 != 0},
    "alibi_slopes=[0.5]": {"alibi_slopes": np.array([0.5])},
}

figure, axes = plt.subplots(2, 4, figsize=(8.4, 3.4))
q, k, v = np.zeros((1, 1, QUERIES, 4)), np.zeros((1, 1, KEYS, 4)), np.zeros((1, 1, KEYS, 1))
for panel, (title, options) in zip(axes.flat, PICTURES.items(), strict=True):
    _, lse = fa.attention(q, k, v, return_lse=True, **options)
    panel.imshow(fa.attention_weights(q, k, lse, **options)[0, 0], cmap="Blues", vmin=0, vmax=0.5)
    panel.set_title(title, fontsize=8, family="monospace")
    panel.set_xticks(np.arange(KEYS) - 0.5, [])
    panel.set_yticks(np.arange(QUERIES) - 0.5, [])
    panel.grid(color="0.8", linewidth=0.5)
    panel.tick_params(length=0)
axes[1, 0].set_xlabel("keys")
axes[1, 0].set_ylabel("queries")
figure.tight_layout()
