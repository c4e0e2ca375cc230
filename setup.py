"""Package metadata. Every dependency is here because it does a job better than our own code would."""

from pathlib import Path

from setuptools import find_packages, setup

_INTEROP = [
    "safetensors>=0.5",  # weights to and from PyTorch
    "onnx>=1.17",  # ONNX graphs read and written
    "flatbuffers>=24",  # jax.export serializes with it and does not require it
]

_DETECTION = ["pycocotools>=2.0.10"]  # COCO's evaluation, its own code

setup(
    name="jaxface",
    version="0.1.0",
    description="JAX/Flax library for efficient and robust face analysis on TPUs and GPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.12",
    packages=find_packages(include=["jaxface*", "pallas_kernels*", "experiments*"]),
    entry_points={"console_scripts": ["jaxface = jaxface.cli.main:main"]},
    package_data={"pallas_kernels.measured": ["*.json"]},  # what `pallas_kernels.common.choose` goes by
    install_requires=[
        "jax>=0.11,<0.13",
        "flax>=0.12",  # linen modules: models as pure `apply`
        "optax>=0.2.5",  # gradient transformations
        "chex>=0.1.90",  # shape assertions, fake devices
        "orbax-checkpoint>=0.11.20",  # asynchronous, atomic checkpoints
        "grain>=0.2.12",  # deterministic input pipelines with a position that can be saved
        "tensorflow-datasets>=4.9.9",  # dataset builders; read through `as_data_source`, no TensorFlow
        "array_record>=0.6",  # the record format of the builders
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "absl-py",  # grain's worker processes parse its flags
        "cattrs>=24",  # configurations to JSON and back, with every mistake named
        "tyro>=1.0,<1.1",  # command-line flags from the Config dataclasses; jaxface.cli.flags reads the text of its refusals
        "rich>=13",  # progress bar and tables
        "tensorboardX>=2.6",  # TensorBoard events without TensorFlow
        "matplotlib>=3.9",  # ROC curves and histograms
        "pillow>=10",  # image decoding, PGM and JPEG augmentation
        "opencv-python-headless>=4.11",  # similarity warps, resizing, JPEG
        "scikit-learn>=1.5",  # digits, Olivetti and LFW sources; folds
        "scikit-image>=0.24",  # lfw_subset
        "scipy>=1.14",  # Student's interval
        "numpy>=2",
    ],
    extras_require={
        "interop": _INTEROP,
        "detection": _DETECTION,
        "test": [
            *_INTEROP,
            *_DETECTION,
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6.100",
            "pyyaml>=6",
            "ruff>=0.8",
        ],
        "cuda": ["jax[cuda13]>=0.11,<0.13"],
        "tpu": ["jax[tpu]>=0.11,<0.13"],
        "bench": ["torch>=2.4"],
        "notebooks": ["jupyterlab>=4"],
    },
)
