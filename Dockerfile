# jaxface with JAX for NVIDIA GPUs. CUDA's libraries come from pip with JAX; the host needs only the driver (580 or newer) and the
# NVIDIA container toolkit.
#
#     docker build --tag jaxface .
#     docker run --rm --gpus all --volume "$PWD/runs:/runs" jaxface python -m experiments.launch sface --workdir /runs/sface
#     docker run --rm --gpus all jaxface jaxface --help
FROM python:3.12-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONUNBUFFERED=1 \
    JAX_COMPILATION_CACHE_DIR=/runs/.cache/jax

WORKDIR /jaxface

# What is needed changes less often than the code: first it, alone, so that a change of the code installs nothing again.
COPY setup.py pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY jaxface/__init__.py jaxface/__init__.py
RUN pip install --constraint constraints.txt '.[all,cuda]' && pip uninstall --yes jaxface

COPY jaxface jaxface
COPY pallas_kernels pallas_kernels
COPY experiments experiments
RUN pip install --no-deps --config-settings editable_mode=compat --editable .

RUN useradd --create-home jaxface && mkdir /runs && chown jaxface /runs
USER jaxface
VOLUME /runs

CMD ["jaxface", "--help"]
