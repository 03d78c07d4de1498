"""Build of the CPU kernels, and the README for package indexes; everything else is in pyproject.toml.

The kernels are optional: where they cannot be compiled, the package installs without them and uses PyTorch. With
`DIRECT_HIFIMAMBA_REQUIRE_KERNELS=1` in the environment, as for a release, the build fails instead. The environment's
`CXXFLAGS` come after the flags below and override them.
"""

import os
import re
import shlex
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("direct_hifimamba/ops/csrc")
# Not -ffast-math: it would remove the rounding that 2^x is built on.
FLAGS = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += shlex.split(os.environ.get("CXXFLAGS", ""))
# Flags for the translation unit of each instruction set; the instruction set is selected at run time.
PORTABLE = {"portable": []}
X86 = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}


class BuildKernel(build_ext):
    """Build command that compiles every unit with its own flags; an `Extension` has only one set of flags."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the units, then the rest, and link."""
        units = PORTABLE
        if self.compiles_for_x86(ext):
            units = PORTABLE | X86
            ext.define_macros.append(("NATIVE_X86", "1"))
        for unit, flags in units.items():
            ext.extra_objects += self.compiler.compile(
                [str(CSRC / f"{unit}.cpp")],
                output_dir=self.build_temp,
                macros=ext.define_macros,
                extra_postargs=ext.extra_compile_args + flags,
                depends=ext.depends,
            )
        super().build_extension(ext)

    def compiles_for_x86(self, ext: Extension) -> bool:
        """Return whether the compiler's only target is x86-64, which may differ from the machine that runs it."""
        probe = Path(self.build_temp, "x86.cpp")
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_text("#ifndef __x86_64__\n#error not x86-64: portable code alone\n#endif\n")
        try:
            self.compiler.compile([str(probe)], output_dir=self.build_temp, extra_postargs=ext.extra_compile_args)
        except CompileError:
            return False
        return True


class Wheel(bdist_wheel):
    """Wheel command that tags a wheel without compiled kernels for any platform."""

    def run(self) -> None:
        """Build first, because only then it is known whether there are kernels."""
        self.run_command("build")
        self.root_is_pure = not any(Path(self.get_finalized_command("build").build_lib).rglob("_native*"))
        super().run()


def long_description() -> str:
    """Return the README without links into the repository, which would be broken in a package index."""
    return re.sub(r"!?\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", Path("README.md").read_text(encoding="utf-8"))


setup(
    long_description=long_description(),
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "direct_hifimamba.ops._native",
            sources=[str(CSRC / "native.cpp")],
            depends=[str(source) for source in CSRC.glob("*")],
            define_macros=[("Py_LIMITED_API", "0x030c0000")],
            extra_compile_args=FLAGS,
            extra_link_args=["-pthread"],
            language="c++",
            optional=os.environ.get("DIRECT_HIFIMAMBA_REQUIRE_KERNELS", "0") in ("", "0"),
            py_limited_api=True,
        )
    ],
    cmdclass={"build_ext": BuildKernel, "bdist_wheel": Wheel},
    options={"bdist_wheel": {"py_limited_api": "cp312"}},
)
