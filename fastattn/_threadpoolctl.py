"""fastattn's pool as threadpoolctl sees it. threadpoolctl finds libraries by file name and symbol; ours exports two."""

import ctypes

import threadpoolctl

_registered = False


class _FastattnController(threadpoolctl.LibController):
    user_api = "fastattn"
    internal_api = "fastattn"
    filename_prefixes = ("_core",)
    check_symbols = ("fastattn_get_num_threads", "fastattn_set_num_threads")

    def get_num_threads(self) -> int:
        return int(self.dynlib.fastattn_get_num_threads())

    def set_num_threads(self, num_threads: int) -> None:
        self.dynlib.fastattn_set_num_threads(ctypes.c_int(num_threads))

    def get_version(self) -> str:
        from fastattn.config import version  # noqa: PLC0415

        return version()

    def set_additional_attributes(self) -> None:
        pass


def register() -> None:
    global _registered  # noqa: PLW0603
    if not _registered:
        threadpoolctl.register(_FastattnController)
        _registered = True
