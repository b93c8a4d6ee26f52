# A slim Python 3.12.4 or newer. Pin it: --build-arg PYTHON_IMAGE=python@sha256:<digest>
ARG PYTHON_IMAGE=python:3.12-slim-bookworm
FROM ${PYTHON_IMAGE}

# The SDK's own log level prints whole answers. hf-xet is what huggingface_hub downloads with.
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RUNPOD_LOG_LEVEL=INFO \
    HF_XET_HIGH_PERFORMANCE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Older ones are wrong about which addresses are public, among other things.
RUN python -c "import sys; sys.exit(sys.version_info < (3, 12, 4))"

WORKDIR /worker

# The largest and least changing layer first: torch brings its own CUDA libraries.
# Each file is known by its hash, and nothing is built: no code of a package runs here.
COPY requirements.lock ./
RUN python -m pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock

# COMPILE=1 needs a C compiler while the worker runs: some 200 MB that others do without. Of Debian's packages only the
# newest version is kept: there is none to pin.
ARG COMPILER=0
# hadolint ignore=DL3008
RUN if [ "${COMPILER}" = 1 ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

COPY handler.py LICENSE ./
COPY qwen_worker ./qwen_worker
RUN python -m compileall -q handler.py qwen_worker \
    && useradd --uid 10001 --gid 0 --create-home worker

# A network volume belongs to root: build with RUN_AS=root if models are to be downloaded onto one.
ARG RUN_AS=worker
USER ${RUN_AS}

# Python itself is process 1: it gets RunPod's SIGTERM, and its end is the container's.
CMD ["python", "-u", "handler.py"]
