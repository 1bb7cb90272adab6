"""An LSTM that reads a stream frame by frame: each step writes into memory that is there already."""

import time

import numpy as np

import fastattn as fa

rng = np.random.default_rng(0)
frames, features, hidden = 500, 40, 128
lstm = fa.nn.LSTM(features, hidden, num_layers=2, rng=rng)
stream = rng.standard_normal((frames, 1, features), dtype=np.float32)

# The state of two layers, h and c: read and written by every step.
state = (np.zeros((2, 1, hidden), np.float32), np.zeros((2, 1, hidden), np.float32))
outputs = np.empty((frames, 1, hidden), np.float32)
seconds = []
for t in range(frames):
    started = time.perf_counter()
    outputs[t], state = lstm.step(stream[t], state, out=state)
    seconds.append(time.perf_counter() - started)

whole, (h, c) = lstm(stream)
print(f"{np.median(seconds) * 1e6:.0f} microseconds a frame")
print("the bits of one call with all frames:", np.array_equal(outputs, whole) and np.array_equal(state[0], h))
