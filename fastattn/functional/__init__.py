"""The public functions, a file per family: NumPy arrays in, NumPy arrays out. All share these rules.

Arrays are float32 or float64, one dtype per call; other dtypes raise TypeError with the fix. Any strides and any sizes,
0 included. A wrong shape or value raises ValueError naming function, argument, expectation and what came. `out` must
have the exact shape and dtype, is returned, and may overlap the inputs. The GIL is released; calls from several threads
and after fork are safe. Results do not depend on the number of threads, on the rest of the batch, or on memory layout.
"""
