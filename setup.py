"""Builds fastattn._core: the kernels once per instruction set and real type, everything else with plain flags.

Environment: FASTATTN_BLAS=vendored|system|none (README, "Building"); CC and CFLAGS as usual.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
REALS = ("F32", "F64")
COMMON = ["-std=c11", "-O2", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
# name of the table -> vocabulary header, flags. Only kernels/ gets them: detection, ops and Cython must run anywhere.
INSTRUCTION_SETS = {
    "baseline": ("PORTABLE", []),
    "avx2": ("AVX2", ["-mavx2", "-mfma"]),
    "avx512": ("AVX512", ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"]),
}
BLAS = os.environ.get("FASTATTN_BLAS", "vendored")
if BLAS not in ("vendored", "system", "none"):
    raise SystemExit(f"FASTATTN_BLAS must be vendored, system or none, got {BLAS!r}")
# The stable ABI has no free-threaded build before CPython 3.15.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")


def openblas_package():
    """The installed scipy_openblas32, found without importing it: its import loads the library."""
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "FASTATTN_BLAS=vendored needs the build dependency scipy-openblas32 (or choose none or system)"
        )
    return Path(spec.origin).parent


def pkg_config(option):
    return subprocess.run(["pkg-config", option, "openblas"], check=True, capture_output=True, text=True).stdout.split()


class BuildExt(build_ext):
    """Compiles csrc/ into objects with flags per file, then the extension as usual."""

    def build_extension(self, ext):
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        sets = INSTRUCTION_SETS if is_x86 else {"baseline": INSTRUCTION_SETS["baseline"]}
        jobs = []
        for name, (header, flags) in sets.items():
            for real in REALS:
                macros = [(f"FA_ISA_{header}", "1"), (f"FA_REAL_{real}", "1"), ("FA_SUFFIX", f"{real.lower()}_{name}")]
                jobs += [(source, f"{name}_{real}", macros, flags) for source in sorted((CSRC / "kernels").glob("*.c"))]
        for real in REALS:
            sources = [source for source in sorted((CSRC / "ops").glob("*.c")) if source.stem != "api"]
            jobs += [(source, f"ops_{real}", [(f"FA_REAL_{real}", "1")], []) for source in sources]
        macros = [(f"FA_HAVE_{name.upper()}", "1") for name in sets] + [(f"FA_BLAS_{BLAS.upper()}", "1")]
        plain = [*sorted(CSRC.glob("*.c")), CSRC / "ops" / "api.c"]
        jobs += [(source, "core", macros, []) for source in plain]

        newest_header = max(
            path.stat().st_mtime for path in (*CSRC.rglob("*.h"), *CSRC.rglob("*.def"), ROOT / "setup.py")
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self.compile_one(*job, newest_header), jobs))
        ext.extra_objects = objects
        ext.depends = objects
        super().build_extension(ext)
        if BLAS == "vendored":
            self.vendor_blas(Path(self.get_ext_fullpath(ext.name)).parent)

    def compile_one(self, source, variant, macros, flags, newest_header):
        folder = Path(self.build_temp) / BLAS / variant
        target = folder / f"{source.stem}.o"
        if target.exists() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime):
            return str(target)
        folder.mkdir(parents=True, exist_ok=True)
        (built,) = self.compiler.compile(
            [str(source.relative_to(ROOT))], output_dir=str(folder), macros=macros, extra_postargs=COMMON + flags
        )
        os.replace(built, target)
        return str(target)

    def vendor_blas(self, package):
        """A private copy under another name: no other library shares it, and nobody resizes its threads by name."""
        libs = package / "_libs"
        libs.mkdir(parents=True, exist_ok=True)
        shutil.copy2(openblas_package() / "lib" / "libscipy_openblas.so", libs / "libfastattn_blas.so")
        (licence,) = openblas_package().parent.glob("scipy_openblas32-*.dist-info/**/LICENSE.txt")
        shutil.copy2(licence, libs / "LICENSE-OpenBLAS.txt")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        if BLAS == "vendored":
            self.vendor_blas(ROOT / "fastattn")

    def get_outputs(self):
        libs = Path(self.build_lib) / "fastattn" / "_libs"
        extra = ["libfastattn_blas.so", "LICENSE-OpenBLAS.txt"] if BLAS == "vendored" and not self.inplace else []
        return super().get_outputs() + [str(libs / name) for name in extra]


core = Extension(
    "fastattn._core",
    ["fastattn/_core.pyx"],
    include_dirs=["csrc"],
    # Without complex numbers: complex.h makes a macro of I, the input size of a recurrent layer.
    define_macros=[("CYTHON_CCOMPLEX", "0")] + ([("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []),
    extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
    libraries=["m", "pthread", "dl"],
    extra_link_args=pkg_config("--libs") if BLAS == "system" else [],
    py_limited_api=LIMITED_API,
)

setup(
    ext_modules=cythonize([core], build_dir="build/cython", compiler_directives={"language_level": 3}),
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
