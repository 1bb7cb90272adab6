"""When the layers of a stacked recurrent network run: a layer follows the one below it by a chunk of steps."""

from matplotlib import patches
from matplotlib import pyplot as plt

LAYERS, CHUNKS = 3, 6
COLOURS = ("#7aa6d8", "#9cc48c", "#e0b070")

figure, axes = plt.subplots(figsize=(5.6, 1.8))
for layer in range(LAYERS):
    for chunk in range(CHUNKS):
        place = (layer + chunk, LAYERS - 1 - layer)
        axes.add_patch(patches.Rectangle(place, 1, 1, facecolor=COLOURS[layer], edgecolor="white"))
        axes.text(place[0] + 0.5, place[1] + 0.5, f"steps {chunk + 1}", ha="center", va="center", fontsize=7)
axes.set(xlim=(0, LAYERS + CHUNKS - 1), ylim=(0, LAYERS), xlabel="time", xticks=[])
axes.set_yticks([LAYERS - 0.5 - layer for layer in range(LAYERS)], [f"layer {layer + 1}" for layer in range(LAYERS)])
axes.tick_params(length=0)
