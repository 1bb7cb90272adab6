"""Types that the signatures share."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
