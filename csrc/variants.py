"""What is compiled, with which macros and flags: the one list that setup.py and scripts/lint read.

kernels/ is compiled once for each instruction set and type of array, ops/ once for each type, everything else once.
A new file needs no entry, unless it knows 16-bit arrays (LOW_PRECISION) or is for matrix tiles (AMX). A new instruction
set needs a row of INSTRUCTION_SETS.
"""

from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).parent

# What extensions of others compile with, in fastattn.get_include().
PUBLIC_HEADERS = ("fastattn.h", "fastattn_import.h", "fastattn_types.h")

COMMON_FLAGS = ("-std=c11", "-O2", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden")
COMMON_FLAGS += ("-ffunction-sections",)  # the linker leaves out what no table names

# Type of the arrays -> macros: the type of the arithmetic, and that of the storage where it is another.
TYPES = {
    "f32": ("FA_REAL_F32",),
    "f64": ("FA_REAL_F64",),
    "bf16": ("FA_REAL_F32", "FA_STORED_BF16"),
    "f16": ("FA_REAL_F32", "FA_STORED_F16"),
}

# The files of kernels/ and ops/ that know 16-bit arrays.
LOW_PRECISION = {
    "kernels/rows/activation",
    "kernels/attention/attention_backward",
    "kernels/attention/attention_mask",
    "kernels/attention/attention_natural",
    "kernels/attention/attention_pack",
    "kernels/attention/attention_values",
    "kernels/rows/cast",
    "kernels/decode/decode",
    "kernels/gemm/few_rows",
    "kernels/gemm/gemm",
    "kernels/rows/norm",
    "kernels/probe",
    "kernels/rows/rope",
    "kernels/table",
    "ops/attention/attention",
    "ops/attention/attention_backward",
    "ops/attention/attention_mask",
    "ops/attention/attention_mask_backward",
    "ops/attention/attention_natural",
    "ops/attention/attention_tile",
    "ops/rows/cast",
    "ops/rows/cross_entropy",
    "ops/attention/decode",
    "ops/attention/decode_block",
    "ops/rows/elementwise",
    "ops/rows/embedding",
    "ops/linear/linear",
    "ops/linear/linear_backward",
    "ops/linear/linear_few",
    "ops/rows/norm",
    "ops/probe",
    "ops/recurrent/recurrent",
    "ops/recurrent/recurrent_stack",
    "ops/recurrent/recurrent_state",
    "ops/recurrent/recurrent_weights",
    "ops/rows/rope",
    "ops/rows/softmax",
}
# And those that bfloat16 has of its own where its products take pairs; elsewhere it takes float's.
PAIRS = LOW_PRECISION | {"kernels/attention/attention"}
# What float32 has of its own where products of bytes are an instruction.
BYTE_PRODUCTS = {
    "kernels/decode/decode_i8",
    "kernels/decode/decode_i8_values",
    "kernels/gemm/gemm_bytes",
    "kernels/table",
}
# The same with matrix tiles: kernels/x_amx.c has those of x.c that are made for them, perhaps all.
AMX_PAIRS = (PAIRS - {"kernels/decode/decode"}) | {
    "kernels/attention/attention_backward_amx",
    "kernels/attention/attention_scores_amx",
    "kernels/attention/attention_values_amx",
    "kernels/decode/decode_amx",
}
AMX_BYTE_PRODUCTS = {
    "kernels/decode/decode_i8",
    "kernels/decode/decode_i8_amx",
    "kernels/decode/decode_i8_values_amx",
    "kernels/gemm/gemm_bytes",
    "kernels/table",
}

# The classes of kernels (kernels.def says what they are).
CLASSES = ("REAL", "STORED", "PACKED", "FLOAT", "BYTES")


# Files whose loops take several vectors through long chains of operations, and the flags by which GCC interleaves the
# chains; other compilers do so by themselves.
INTERLEAVED = {"kernels/rows/activation", "kernels/rows/activation_backward"}
INTERLEAVING = ("-fschedule-insns", "-fsched-pressure")


@dataclass(frozen=True)
class Share:
    """What a set compiles of kernels/ for a type: these files (None: all), which have the kernels of these classes.

    The kernels of the other classes are float32's of the whole set.
    """

    files: frozenset[str] | None
    classes: tuple[str, ...]


WHOLE = Share(None, CLASSES)
CONVERTED = Share(frozenset(LOW_PRECISION), ("STORED",))
ALL_TYPES = {"f32": WHOLE, "f64": WHOLE, "bf16": CONVERTED, "f16": CONVERTED}
OWN_PRODUCTS = {
    "bf16": Share(frozenset(PAIRS), ("STORED", "PACKED")),
    "f32": Share(frozenset(BYTE_PRODUCTS), ("BYTES",)),
}
AMX_PRODUCTS = {
    "bf16": Share(frozenset(AMX_PAIRS), ("STORED", "PACKED")),
    "f32": Share(frozenset(AMX_BYTE_PRODUCTS), ("BYTES",)),
}

AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
AVX512BF16 = (*AVX512, "-mavx512bf16", "-mavx512vnni")
AMXBF16 = (*AVX512BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8")


@dataclass(frozen=True)
class InstructionSet:
    """A table of kernels.

    Attributes
    ----------
    name
        Of the set, as FASTATTN_ISA names it; the suffix of its kernels.
    header
        simd/<header>.h, which the macro FA_SIMD names.
    flags
        Of the compiler, for kernels/ alone: detection, ops and Cython run anywhere.
    types
        Type -> its share of kernels/. The types that are missing come from the whole set before.
    machine
        The only one that it is compiled for, as binaries.Target names it; empty for all.
    """

    name: str
    header: str
    flags: tuple[str, ...]
    types: dict[str, Share]
    machine: str = ""

    def is_for(self, machine: str) -> bool:
        """Whether it is compiled for a machine."""
        return self.machine in ("", machine)

    @property
    def is_whole(self) -> bool:
        """Whether it has kernels of its own for every type."""
        return self.types is ALL_TYPES


# In rising order. The first runs anywhere.
INSTRUCTION_SETS = (
    InstructionSet("baseline", "portable", (), ALL_TYPES),
    InstructionSet("avx2", "avx2", AVX2, ALL_TYPES, "x86_64"),
    InstructionSet("avx512", "avx512", AVX512, ALL_TYPES, "x86_64"),
    InstructionSet("avx512bf16", "avx512", AVX512BF16, OWN_PRODUCTS, "x86_64"),
    InstructionSet("amxbf16", "avx512", AMXBF16, AMX_PRODUCTS, "x86_64"),
)


def chosen(names: list[str]) -> tuple[InstructionSet, ...]:
    """The sets of these names, the whole set that each of them takes from, and the baseline; all for no names."""
    unknown = set(names) - {isa.name for isa in INSTRUCTION_SETS}
    if unknown:
        raise SystemExit(f"FASTATTN_SETS: {', '.join(sorted(unknown))} is no instruction set")
    needed, whole = {INSTRUCTION_SETS[0].name}, ""
    for isa in INSTRUCTION_SETS:
        whole = isa.name if isa.is_whole else whole
        if isa.name in names or not names:
            needed |= {isa.name, whole}
    return tuple(isa for isa in INSTRUCTION_SETS if isa.name in needed)


BLAS_PROVIDERS = ("vendored", "system", "none")


@dataclass(frozen=True)
class Unit:
    """One source to be compiled in one way; `variant` is the folder of its object."""

    source: Path
    variant: str
    macros: tuple[tuple[str, str], ...]
    flags: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # flags for a compiler that knows them


def sources_of(folder: str, files: frozenset[str] | None) -> list[Path]:
    """The sources of a folder of csrc/ but those for matrix tiles, or those that are in a set of files."""
    sources = {s.relative_to(CSRC).with_suffix("").as_posix(): s for s in sorted((CSRC / folder).rglob("*.c"))}
    return [s for name, s in sources.items() if (name in files if files else not name.endswith("_amx"))]


def optional_flags(source: Path) -> tuple[str, ...]:
    return INTERLEAVING if source.relative_to(CSRC).with_suffix("").as_posix() in INTERLEAVED else ()


def defined(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, "1") for name in names)


def kernel_units(sets: tuple[InstructionSet, ...]) -> list[Unit]:
    """kernels/, for each set and type."""
    units, whole = [], ""
    for isa in sets:
        whole = isa.name if isa.is_whole else whole
        for kind, share in isa.types.items():
            own = f"{kind}_{isa.name}"
            macros = (("FA_SIMD", isa.header), *defined(*TYPES[kind]), ("FA_SUFFIX", own))
            macros += tuple((f"FA_FROM_{c}", own if c in share.classes else f"f32_{whole}") for c in CLASSES)
            units += [
                Unit(s, f"{isa.name}_{kind}", macros, isa.flags, optional_flags(s))
                for s in sources_of("kernels", share.files)
            ]
    return units


def op_units() -> list[Unit]:
    """ops/, for each type."""
    return [
        Unit(source, f"ops_{kind}", defined(*macros))
        for kind, macros in TYPES.items()
        for source in sources_of("ops", ALL_TYPES[kind].files)
        if source.stem != "api"
    ]


def plain_units(sets: tuple[InstructionSet, ...], blas: str) -> list[Unit]:
    """What is compiled once, and knows the sets and the BLAS of the build."""
    macros = defined(*(f"FA_HAVE_{isa.name.upper()}" for isa in sets), f"FA_BLAS_{blas.upper()}")
    variant = "_".join(("core", blas, *(isa.name for isa in sets)))
    others = [s for s in sorted(CSRC.rglob("*.c")) if s.relative_to(CSRC).parts[0] not in ("kernels", "ops")]
    return [Unit(s, variant, macros) for s in (*others, CSRC / "ops" / "api.c")]


def all_units(sets: tuple[InstructionSet, ...], blas: str) -> list[Unit]:
    return [*kernel_units(sets), *op_units(), *plain_units(sets, blas)]
