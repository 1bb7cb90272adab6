"""The memory that attention takes beside its arguments and results: bounded, whatever the lengths."""

import subprocess
import sys

import pytest

MEGABYTE = 2**20
# Each kv head of 4 query heads has 8 MB of dq in float32; a window keeps the calls short and changes no buffer.
CHILD = """
import resource, sys
import ml_dtypes, numpy as np
import fastattn as fa
dtype, kv_heads = np.dtype(getattr(ml_dtypes, sys.argv[1], sys.argv[1])), int(sys.argv[2])
fa.set_num_threads(1)
q, dout = (np.ones((1, 4 * kv_heads, 8192, 64), dtype) for _ in range(2))
k, v = (np.ones((1, kv_heads, 8192, 64), dtype) for _ in range(2))

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
out, saved = fa.attention_forward(q, k, v, window=(100, 0))
after_forward = peak()
gradients = fa.attention_backward(dout, saved)
print(after_forward - before - out.nbytes, peak() - after_forward - sum(x.nbytes for x in gradients[:3]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_scratch_of_long_calls_with_grouped_heads_is_bounded(dtype):
    command = [sys.executable, "-c", CHILD, dtype, "6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    forward, backward = map(int, done.stdout.split())
    # Of forward also the state that is kept for backward, 4.5 MB in float64; the packed keys and values of a head.
    assert forward <= 32 * MEGABYTE
    assert backward <= 32 * MEGABYTE
