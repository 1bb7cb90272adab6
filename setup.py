"""Builds fastattn._core: the kernels once per instruction set and type of array, everything else with plain flags.

Environment: FASTATTN_BLAS=vendored|system|none (README, "Building"); CC and CFLAGS as usual.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
# type of the arrays -> macros: the type of the arithmetic, and of the storage where that is another.
TYPES = {
    "f32": ("FA_REAL_F32",),
    "f64": ("FA_REAL_F64",),
    "bf16": ("FA_REAL_F32", "FA_STORED_BF16"),
    "f16": ("FA_REAL_F32", "FA_STORED_F16"),
}
# The files of kernels/ and ops/ that know 16-bit arrays.
LOW_PRECISION = {
    "kernels/activation",
    "kernels/attention_backward",
    "kernels/attention_mask",
    "kernels/attention_pack",
    "kernels/attention_values",
    "kernels/cast",
    "kernels/decode",
    "kernels/gemm",
    "kernels/norm",
    "kernels/probe",
    "kernels/rope",
    "kernels/table",
    "ops/attention",
    "ops/attention_backward",
    "ops/attention_mask",
    "ops/attention_mask_backward",
    "ops/attention_tile",
    "ops/cast",
    "ops/decode",
    "ops/decode_block",
    "ops/elementwise",
    "ops/embedding",
    "ops/linear",
    "ops/norm",
    "ops/probe",
    "ops/recurrent",
    "ops/recurrent_stack",
    "ops/recurrent_state",
    "ops/recurrent_weights",
    "ops/rope",
    "ops/softmax",
}
# And those that bfloat16 has of its own where its products take pairs; elsewhere it takes float's.
PAIRS = LOW_PRECISION | {"kernels/attention", "kernels/decode_tiles"}
# What float32 has of its own in avx512bf16 and amxbf16.
BYTE_PRODUCTS = {"kernels/decode_i8", "kernels/decode_i8_values", "kernels/table"}
COMMON = ["-std=c11", "-O2", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
COMMON += ["-ffunction-sections"]  # the linker leaves out what no table names
ALL_FILES = {"f32": None, "f64": None, "bf16": LOW_PRECISION, "f16": LOW_PRECISION}
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
# name of the table -> vocabulary header, flags, types and their files (None: all): a set takes from the one below it
# the types that it does not name, and of float32 the other files. Only kernels/ gets the flags: detection, ops and
# Cython must run anywhere.
INSTRUCTION_SETS = {
    "baseline": ("PORTABLE", [], ALL_FILES),
    "avx2": ("AVX2", AVX2, ALL_FILES),
    "avx512": ("AVX512", AVX512, ALL_FILES),
    "avx512bf16": (
        "AVX512",
        [*AVX512, "-mavx512bf16", "-mavx512vnni"],
        {"bf16": PAIRS, "f32": BYTE_PRODUCTS},
    ),
    "amxbf16": (
        "AVX512",
        [*AVX512, "-mavx512bf16", "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
        {"bf16": PAIRS, "f32": BYTE_PRODUCTS},
    ),
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


def sources_of(folder, files):
    """The sources of a folder, or those of them that are in a set of files."""
    sources = sorted((CSRC / folder).glob("*.c"))
    return [source for source in sources if files is None or f"{folder}/{source.stem}" in files]


def pkg_config(option):
    return subprocess.run(["pkg-config", option, "openblas"], check=True, capture_output=True, text=True).stdout.split()


class BuildExt(build_ext):
    """Compiles csrc/ into objects with flags per file, then the extension as usual."""

    def run(self):
        self.in_tree = self.inplace or self.editable_mode  # setuptools clears inplace while it builds
        super().run()

    def build_extension(self, ext):
        is_x86 = platform.machine().lower() in ("x86_64", "amd64")
        sets = {
            name: of_set
            for name, of_set in INSTRUCTION_SETS.items()
            if name == "baseline" or (is_x86 and self.accepts(name, of_set[1]))
        }
        jobs, real_set = [], ""
        for name, (header, flags, types) in sets.items():
            if types is ALL_FILES:
                real_set = name
            for kind, files in types.items():
                macros = [(macro, "1") for macro in (f"FA_ISA_{header}", *TYPES[kind])]
                macros += [("FA_SUFFIX", f"{kind}_{name}")]
                if files is not None:
                    macros += [("FA_REAL_SUFFIX", f"f32_{real_set}")]
                jobs += [(source, f"{name}_{kind}", macros, flags) for source in sources_of("kernels", files)]
        for kind, macros in TYPES.items():
            sources = [source for source in sources_of("ops", ALL_FILES[kind]) if source.stem != "api"]
            jobs += [(source, f"ops_{kind}", [(macro, "1") for macro in macros], []) for source in sources]
        macros = [(f"FA_HAVE_{name.upper()}", "1") for name in sets] + [(f"FA_BLAS_{BLAS.upper()}", "1")]
        plain = [*sorted(CSRC.glob("*.c")), CSRC / "ops" / "api.c"]
        jobs += [(source, f"core_{BLAS}", macros, []) for source in plain]

        newest_header = max(
            path.stat().st_mtime for path in (*CSRC.rglob("*.h"), *CSRC.rglob("*.def"), ROOT / "setup.py")
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(lambda job: self.compile_one(*job, newest_header), jobs))
        ext.extra_objects = objects
        ext.depends = objects
        if platform.system() == "Linux":
            ext.extra_link_args = [*ext.extra_link_args, "-Wl,--gc-sections"]
            if not self.in_tree:  # a wheel needs no names of static functions
                ext.extra_link_args += ["-Wl,-s"]
        super().build_extension(ext)
        if BLAS == "vendored":
            self.vendor_blas(Path(self.get_ext_fullpath(ext.name)).parent)

    def accepts(self, name, flags):
        """Whether the compiler knows the flags of a set, as GCC has those of AMX since 11; if not, it is left out."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("typedef int empty;\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=flags)
            except CompileError:
                print(f"fastattn: this compiler knows no {' '.join(flags)}: {name} is left out", file=sys.stderr)
                return False
        return True

    def compile_one(self, source, variant, macros, flags, newest_header):
        # Not in build_temp, which an editable install throws away: what is up to date is not compiled again. Another
        # compiler, or other flags of the environment, have a folder of their own.
        command = zlib.crc32(" ".join([*self.compiler.compiler_so, *os.environ.get("CFLAGS", "").split()]).encode())
        folder = ROOT / "build" / f"objects-{sysconfig.get_platform()}-{command:08x}" / variant
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
        source, copy = openblas_package() / "lib" / "libscipy_openblas.so", libs / "libfastattn_blas.so"
        if shutil.which("strip"):  # a few hundred kilobytes of the wheel
            subprocess.run(["strip", "--strip-unneeded", "-o", str(copy), str(source)], check=True)
        else:
            shutil.copy2(source, copy)
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
