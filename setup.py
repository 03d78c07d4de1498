"""Build of the CPU kernels; everything else is in pyproject.toml.

The kernels are optional: where they cannot be compiled the package installs without them and computes with PyTorch.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("direct_hifimamba/ops/csrc")
# Not -ffast-math: it would remove the rounding that 2^x is built on.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
# Instruction set -> flags of its translation unit; which one runs is decided at run time.
UNITS = {"portable": []}
MACROS = [("Py_LIMITED_API", "0x030c0000")]
if platform.machine().lower() in ("x86_64", "amd64"):
    UNITS |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    }
    MACROS += [("NATIVE_X86", "1")]


class BuildKernel(build_ext):
    """Compiles every unit of `UNITS` with flags of its own; an `Extension` knows only one set of flags."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the units, then the rest, and link."""
        for unit, flags in UNITS.items():
            ext.extra_objects += self.compiler.compile(
                [str(CSRC / f"{unit}.cpp")],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                extra_postargs=ext.extra_compile_args + flags,
                depends=ext.depends,
            )
        super().build_extension(ext)


setup(
    ext_modules=[
        Extension(
            "direct_hifimamba.ops._native",
            sources=[str(CSRC / "native.cpp")],
            depends=[str(source) for source in CSRC.glob("*")],
            define_macros=MACROS,
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel},
    options={"bdist_wheel": {"py_limited_api": "cp312"}},
)
