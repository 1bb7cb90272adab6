"""The picture of the positions: sines and cosines of many periods."""

import numpy as np

import fastattn as fa
from benchmarks.claims import Part, Settings, Tick
from benchmarks.report import plots

TOKENS, COLUMNS = 20, 512


def measure(settings: Settings, tick: Tick) -> Part:
    """The picture, and what makes the code one of relative positions."""
    tick("positions")
    table = fa.sinusoidal_positions(TOKENS, COLUMNS, dtype=np.float64)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)
    nearest = float(distances[~np.eye(TOKENS, dtype=bool)].min())
    # The product of two rows depends on their distance alone: cos(a - b) summed over the periods.
    products = table @ table.T
    spread = max(float(np.ptp(np.diagonal(products, offset))) for offset in range(TOKENS))
    wavelengths = 2 * np.pi * 10000.0 ** (np.arange(0, COLUMNS, 2) / COLUMNS)
    return Part(
        "Positions as sines and cosines",
        "Sines and cosines of various periods are added to the embeddings, so that a model without recurrence knows"
        " the order of its tokens.",
        [
            f"{TOKENS} tokens, {COLUMNS} columns: sines in even columns, cosines in odd ones, with periods from"
            f" {wavelengths[0]:.2f} to {wavelengths[-1]:,.0f} tokens.",
            f"No two of the {TOKENS} rows are nearer than {nearest:.2f}, and the inner product of two rows depends on"
            f" their distance alone: it varies by {spread:.0e} along the diagonals.",
        ],
        [plots.heat_map(table, "column", "token", symmetric=True)],
        data={"products_of_distance": products[0].tolist()},
    )
