"""Builds fastattn._core: the kernels once per instruction set and type of array, everything else with plain flags.

Environment: FASTATTN_BLAS=vendored|system|none, FASTATTN_OPENBLAS=FOLDER, FASTATTN_SETS="avx2 ..." (docs/building.md);
CC, CFLAGS, LDFLAGS, LDSHARED and STRIP as usual.
"""

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "csrc"))  # a build in isolation has not even this folder in its path
import binaries  # noqa: E402
import variants  # noqa: E402

BLAS = os.environ.get("FASTATTN_BLAS", "vendored")
if BLAS not in variants.BLAS_PROVIDERS:
    raise SystemExit(f"FASTATTN_BLAS must be vendored, system or none, got {BLAS!r}")
# The stable ABI has no free-threaded build before CPython 3.15.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")


def openblas_package():
    """The folder FASTATTN_OPENBLAS, or the installed scipy_openblas32, not imported: its import loads the library."""
    if "FASTATTN_OPENBLAS" in os.environ:
        return Path(os.environ["FASTATTN_OPENBLAS"])
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "FASTATTN_BLAS=vendored needs the build dependency scipy-openblas32 (or choose none or system)"
        )
    return Path(spec.origin).parent


def is_newer(target, made_of):
    """Whether an object is newer than the sources that a rule of make names, and than the list of what is compiled."""
    if not (target.exists() and made_of.exists()):
        return False
    _, _, names = made_of.read_text().replace("\\\n", " ").partition(":")
    sources = [ROOT / name for name in names.split()] + [ROOT / "setup.py", Path(variants.__file__)]
    return all(source.exists() and source.stat().st_mtime < target.stat().st_mtime for source in sources)


def pkg_config(option):
    return subprocess.run(["pkg-config", option, "openblas"], check=True, capture_output=True, text=True).stdout.split()


def without_run_path(words):
    """A linker's command without the folders in which this Python looks for libraries, but those that LDFLAGS has.

    The module needs none, and a wheel would carry the path of the machine that built it.
    """
    wanted = os.environ.get("LDFLAGS", "").split()
    kept, words = [], iter(words)
    for word in words:
        if word in ("-Wl,-rpath", "-rpath") and word not in wanted:
            next(words, None)
        elif word in wanted or not word.startswith(("-Wl,-rpath", "-Wl,-R", "-R")):
            kept.append(word)
    return kept


class BdistWheel(bdist_wheel):
    """Compresses as well as deflate can, which the command has no option for."""

    def run(self):
        super().run()
        wheel = Path(self.distribution.dist_files[-1][2])
        smaller = wheel.with_suffix(".new")
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w") as new:
            for member in old.infolist():
                new.writestr(member, old.read(member), zipfile.ZIP_DEFLATED, 9)
        os.replace(smaller, wheel)


class BuildExt(build_ext):
    """Compiles csrc/ into objects with flags per file, then the extension as usual."""

    def run(self):
        self.in_tree = self.inplace or self.editable_mode  # setuptools clears inplace while it builds
        super().run()

    def build_extension(self, ext):
        self.target = self.target_of_compiler()
        wanted = variants.chosen(os.environ.get("FASTATTN_SETS", "").split())
        sets = tuple(isa for isa in wanted if isa.is_for(self.target.machine) and self.has_flags_of(isa))
        units = variants.all_units(sets, BLAS)
        # Clang takes flags of GCC with a warning.
        self.optional_flags = {flags for flags in {u.optional for u in units} if self.accepts("-Werror", *flags)}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            cython = pool.submit(self.compile_cython, ext)  # the longest: first, so that nothing waits for it alone
            objects = list(pool.map(self.compile_unit, units))
        self.write_compile_commands(units)
        ext.sources = []
        ext.extra_objects = ext.depends = [cython.result(), *objects]
        if self.target.system != "windows":
            ext.libraries = ["m", "pthread", "dl"]
            self.compiler.linker_so = without_run_path(self.compiler.linker_so)
        if self.target.system == "linux":
            ext.extra_link_args = [*ext.extra_link_args, "-Wl,--gc-sections"]
            if not self.in_tree:  # a wheel needs no names of static functions
                ext.extra_link_args += ["-Wl,-s"]
        super().build_extension(ext)
        self.add_files(Path(self.get_ext_fullpath(ext.name)).parent)

    def add_files(self, package):
        """What the package has beside its extension: the headers of the C API, and a BLAS."""
        (package / "include").mkdir(parents=True, exist_ok=True)
        for name in variants.PUBLIC_HEADERS:
            shutil.copy2(variants.CSRC / name, package / "include" / name)
        if BLAS == "vendored":
            self.vendor_blas(package)

    def target_of_compiler(self):
        """The system and machine of what it compiles, which need not be those of this Python."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("int fa_empty;\n")
            (built,) = self.compiler.compile([str(source)], output_dir=folder)
            try:
                return binaries.target_of(Path(built))
            except ValueError as error:
                raise SystemExit(f"setup.py: {error}") from None

    def accepts(self, *flags):
        """Whether the compiler takes all of these flags."""
        if not flags:
            return True
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "empty.c"
            source.write_text("typedef int empty;\n")
            try:
                self.compiler.compile([str(source)], output_dir=folder, extra_postargs=[*flags])
            except CompileError:
                return False
        return True

    def has_flags_of(self, isa):
        """Whether a set can be compiled: GCC has the flags of AMX since 11. If not, the set is left out."""
        accepted = self.accepts(*isa.flags)
        if not accepted:
            print(f"fastattn: this compiler lacks flags of {isa.name}, which is left out", file=sys.stderr)
        return accepted

    def compile_unit(self, unit):
        """The object of a source of csrc/ for an instruction set and type of array."""
        target = Path(unit.variant) / unit.source.relative_to(variants.CSRC).with_suffix(".o")
        optional = unit.optional if unit.optional in self.optional_flags else ()
        flags = (*variants.COMMON_FLAGS, *unit.flags, *optional)
        return self.compile(unit.source.relative_to(ROOT), target, unit.macros, flags)

    def compile_cython(self, ext):
        """The object of the C file that Cython has made."""
        (source,) = ext.sources
        folders = (*ext.include_dirs, *self.include_dirs)
        target = Path(f"cpython-{sys.version_info.major}.{sys.version_info.minor}") / "_core.o"
        return self.compile(source, target, ext.define_macros, ext.extra_compile_args, folders)

    def compile(self, source, target, macros, flags, include_dirs=()):
        """An object, compiled unless it is newer than all that it was made of."""
        # Not in build_temp, which an editable install throws away: what is up to date is not compiled again. Another
        # compiler, or other flags of the environment, have a folder of their own.
        command = zlib.crc32(" ".join([*self.compiler.compiler_so, *os.environ.get("CFLAGS", "").split()]).encode())
        folder = ROOT / "build" / f"objects-{sysconfig.get_platform()}-{command:08x}"
        target = folder / target
        made_of = target.with_suffix(".d")
        if is_newer(target, made_of):
            return str(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        (built,) = self.compiler.compile(
            [str(source)],
            output_dir=str(target.parent / "new"),
            macros=[*macros],
            include_dirs=[*include_dirs],
            extra_postargs=[*flags, "-MMD", "-MF", str(made_of)],
        )
        os.replace(built, target)
        return str(target)

    def write_compile_commands(self, units):
        """build/compile_commands.json, by which clangd and its like see the sources."""
        compiler = [*self.compiler.compiler_so, *variants.COMMON_FLAGS]
        commands = [
            {
                "directory": str(ROOT),
                "file": str(unit.source),
                "arguments": [
                    *compiler,
                    *unit.flags,
                    *(f"-D{name}={value}" for name, value in unit.macros),
                    "-c",
                    str(unit.source),
                ],
            }
            for unit in units
        ]
        (ROOT / "build" / "compile_commands.json").write_text(json.dumps(commands, indent=1))

    def vendor_blas(self, package):
        """A private copy under another name: no other library shares it, and nobody resizes its threads by name."""
        libs, suffix = package / "_libs", binaries.SUFFIXES[self.target.system]
        libs.mkdir(parents=True, exist_ok=True)
        source, copy = openblas_package() / "lib" / f"libscipy_openblas{suffix}", libs / f"libfastattn_blas{suffix}"
        try:
            binaries.check_same(source, self.target)
        except ValueError as error:
            raise SystemExit(
                f"setup.py: {error} (FASTATTN_OPENBLAS names the folder of another scipy_openblas32)"
            ) from None
        # A few hundred kilobytes of the wheel. It may know no other machine, and Mach-O would lose its signature.
        strip = shlex.split(os.environ.get("STRIP", "strip"))
        command = [*strip, "--strip-unneeded", "-o", str(copy), str(source)]
        able = self.target.system == "linux" and shutil.which(strip[0])
        if not able or subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode != 0:
            shutil.copy2(source, copy)
        binaries.clear_unwind_table(copy)
        (licence,) = openblas_package().parent.glob("scipy_openblas32-*.dist-info/**/LICENSE.txt")
        shutil.copy2(licence, libs / "LICENSE-OpenBLAS.txt")

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        self.add_files(ROOT / "fastattn")

    def get_outputs(self):
        package = Path(self.build_lib) / "fastattn"
        files = [] if self.inplace else [package / "include" / name for name in variants.PUBLIC_HEADERS]
        if BLAS == "vendored" and not self.inplace:
            files += sorted((package / "_libs").glob("*"))
        return super().get_outputs() + [str(file) for file in files]


core = Extension(
    "fastattn._core",
    ["fastattn/_ext/_core.pyx"],
    include_dirs=["csrc"],
    # Without complex numbers: complex.h makes a macro of I, the input size of a recurrent layer.
    define_macros=[("CYTHON_CCOMPLEX", "0")] + ([("Py_LIMITED_API", "0x030B0000")] if LIMITED_API else []),
    extra_compile_args=["-O2", "-g0", "-fvisibility=hidden"],
    extra_link_args=pkg_config("--libs") if BLAS == "system" else [],
    py_limited_api=LIMITED_API,
)

setup(
    ext_modules=cythonize(
        [core], build_dir="build/cython", include_path=["fastattn/_ext"], compiler_directives={"language_level": 3}
    ),
    cmdclass={"bdist_wheel": BdistWheel, "build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED_API else {},
)
