"""Package metadata. Every dependency is here because it does a job better than our own code would."""

from pathlib import Path

from setuptools import find_packages, setup

_HOME = "https://github.com/jaxface/jaxface"

DATA = [
    "grain>=0.2.12",  # deterministic input pipelines with a position that can be saved
    "tensorflow-datasets>=4.9.9",  # dataset builders; read through `as_data_source`, no TensorFlow
    "array_record>=0.6",  # the record format of the builders
    "importlib_resources",  # tensorflow-datasets imports it without declaring it
    "absl-py",  # grain's worker processes parse its flags
    "opencv-python-headless>=4.11",  # similarity warps, resizing, JPEG
    "pillow>=10",  # image decoding, PGM and JPEG augmentation
]
TRAIN = [
    *DATA,
    "orbax-checkpoint>=0.11.20",  # asynchronous, atomic checkpoints
    "etils[epath]>=1.9",  # paths of any file system
    "cattrs>=24",  # configurations to JSON and back, with every mistake named
    "tyro>=1.0,<1.1",  # command-line flags from the Config dataclasses; jaxface.cli.flags reads the text of its refusals
    "rich>=13",  # progress bar and tables
    "tensorboardX>=2.6",  # TensorBoard events without TensorFlow
    "matplotlib>=3.9",  # ROC curves and histograms
    "scipy>=1.14",  # Student's interval
]
SETS = [
    "scikit-learn>=1.5",  # digits, Olivetti and LFW sources; folds
    "scikit-image>=0.24",  # lfw_subset
]
INTEROP = [
    "safetensors>=0.5",  # weights to and from PyTorch, and those of bundles
    "onnx>=1.17",  # ONNX graphs read and written
    "jax2onnx>=0.13",  # ONNX graphs of networks without published names
    "flatbuffers>=24",  # jax.export serializes with it and does not require it
]
INFERENCE = [*TRAIN, "safetensors>=0.5"]
GALLERY = ["faiss-cpu>=1.9"]  # search in galleries beyond a million
DETECTION = [
    "pycocotools>=2.0.10",  # COCO's evaluation, its own code
    "scipy>=1.14",  # matching of ellipses, lists of WIDER FACE
]
FOUNDATION = [
    "tokenizers>=0.21",  # trains and reads the tokenizers of captions
    "ImageHash>=4.3",  # perceptual hashes: test images are kept out of training sets
]
COMPRESSION = [
    "constriction>=0.4",  # range coder of image and video files
    "bjontegaard>=1.2",  # BD-rate between rate-distortion curves
]
TRACKING = ["wandb>=0.19", "mlflow-skinny>=3"]  # writers beside JSON lines and TensorBoard
DOCS = ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"]
NOTEBOOKS = ["jupytext>=1.16", "nbclient>=0.10", "ipykernel>=6"]  # scripts as notebooks, and executed

_PEOPLE = [
    *INFERENCE,
    *SETS,
    *INTEROP,
    *GALLERY,
    *DETECTION,
    *FOUNDATION,
    *COMPRESSION,
    *TRACKING,
]  # all that needs no device and no developer

setup(
    name="jaxface",
    version="0.1.0",
    description="JAX/Flax library for efficient and robust face analysis on TPUs and GPUs",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The jaxface developers",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    keywords="face-recognition face-detection jax flax pallas knowledge-distillation",
    url=_HOME,
    project_urls={
        "Documentation": f"{_HOME}/tree/main/docs",
        "Source": _HOME,
        "Changelog": f"{_HOME}/blob/main/CHANGELOG.md",
        "Issues": f"{_HOME}/issues",
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.12",
    # Experiments are run from a checkout, where `python -m experiments.launch` finds them: they are no package of the wheel.
    packages=find_packages(include=["jaxface", "jaxface.*", "pallas_kernels", "pallas_kernels.*"]),
    entry_points={"console_scripts": ["jaxface = jaxface.cli.main:main"]},
    package_data={
        "jaxface": ["py.typed"],
        "pallas_kernels": ["py.typed"],
        "pallas_kernels.measured": ["*.json"],  # what `pallas_kernels.common.choose` goes by
    },
    install_requires=[
        "jax>=0.11,<0.13",
        "flax>=0.12",  # linen modules: models as pure `apply`
        "optax>=0.2.5",  # gradient transformations
        "chex>=0.1.90",  # shape assertions, fake devices
        "numpy>=2",
    ],
    extras_require={
        "data": DATA,
        "train": TRAIN,
        "sets": SETS,
        "interop": INTEROP,
        "inference": INFERENCE,
        "gallery": GALLERY,
        "detection": DETECTION,
        "foundation": FOUNDATION,
        "compression": COMPRESSION,
        "tracking": TRACKING,
        "docs": DOCS,
        "notebooks": NOTEBOOKS,
        "bench": ["torch>=2.4"],
        "cuda": ["jax[cuda13]>=0.11,<0.13"],
        "tpu": ["jax[tpu]>=0.11,<0.13"],
        "all": _PEOPLE,
        "test": [
            *_PEOPLE,
            *DOCS,
            *NOTEBOOKS,
            "onnxruntime>=1.20",  # exported graphs are run
            "pytest>=8",
            "pytest-xdist>=3",
            "hypothesis>=6.100",
            "playwright>=1.49",  # pages are tested in a browser of the system; it brings none
            "pyyaml>=6",
            "packaging>=24",
            "setuptools>=77",  # the wheel is built by a test
            "ruff>=0.8",
            "ty>=0.0.100",
        ],
    },
)
