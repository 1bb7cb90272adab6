"""How attention walks over a causal matrix of scores: blocks of queries by blocks of keys."""

from matplotlib import patches
from matplotlib import pyplot as plt

QUERY_BLOCKS, KEY_BLOCKS, RATIO = 8, 4, 2  # a block of keys is as wide as two of queries

figure, axes = plt.subplots(figsize=(4.6, 3.6))
for i in range(QUERY_BLOCKS):
    for j in range(KEY_BLOCKS):
        first, last = j * RATIO, (j + 1) * RATIO - 1
        state = "all" if last < i else "part" if first <= i else "none"
        colour = {"all": "#7aa6d8", "part": "#c4d8ee", "none": "#f2f2f2"}[state]
        axes.add_patch(patches.Rectangle((j * RATIO, i), RATIO, 1, facecolor=colour, edgecolor="white"))
axes.plot([0, QUERY_BLOCKS], [0, QUERY_BLOCKS], color="#333333", linewidth=1)
axes.annotate("", (6, 5.5), (0, 5.5), arrowprops={"arrowstyle": "->", "color": "#b03030", "linewidth": 1.5})
axes.text(0.1, 5.35, "one task: a block of queries", color="#b03030", fontsize=8)
axes.set(
    xlim=(0, QUERY_BLOCKS), ylim=(QUERY_BLOCKS, 0), xlabel="keys, in blocks of 512", ylabel="queries, in blocks of 96"
)
axes.set_xticks(range(0, QUERY_BLOCKS + 1, RATIO), [])
axes.set_yticks(range(QUERY_BLOCKS + 1), [])
axes.set_aspect("equal")
