# A slim Python 3.12.4 or newer. Pin it: --build-arg BASE_IMAGE=python@sha256:<digest>
ARG BASE_IMAGE=python:3.12-slim-bookworm
FROM ${BASE_IMAGE}

# The SDK's own log level prints whole answers. hf-xet is what huggingface_hub downloads with. HF_HUB_CACHE is where a
# model is that was baked in, and where one is downloaded to if there is no volume.
ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    RUNPOD_LOG_LEVEL=INFO \
    HF_XET_HIGH_PERFORMANCE=1 \
    HF_HUB_CACHE=/models \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Older ones are wrong about which addresses are public, among other things.
RUN python -c "import sys; sys.exit(sys.version_info < (3, 12, 4))" \
    && useradd --uid 10001 --gid 0 --create-home worker \
    && install --directory --owner worker /models

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

# BAKE_MODEL=1: the image holds what the worker would download with these variables, 57.7 GB. Only what the download is
# made of comes before: the layer stays when other code changes. The token is a secret of the build, and in no layer.
COPY qwen_worker/__init__.py qwen_worker/budget.py qwen_worker/download.py qwen_worker/family.py qwen_worker/hosts.py \
    qwen_worker/presets.py qwen_worker/profiles.py qwen_worker/settings.py qwen_worker/snapshots.py \
    qwen_worker/tuning.py ./qwen_worker/
COPY qwen_worker/model/__init__.py qwen_worker/model/hub.py ./qwen_worker/model/
ARG BAKE_MODEL=0
ARG HF_ENDPOINT=https://huggingface.co
ARG MODEL_ID=
ARG MODEL_REVISION=
ARG MODEL_CLASS=
ARG T2I_MODEL_ID=
ARG T2I_MODEL_REVISION=
ARG PRESET=
ARG LIGHTNING_LORA=
ARG T2I_LIGHTNING_LORA=
ARG LORAS=
# What is baked in is what the worker loads, unless the endpoint says otherwise. Empty means the default.
ENV MODEL_ID=${MODEL_ID} \
    MODEL_REVISION=${MODEL_REVISION} \
    MODEL_CLASS=${MODEL_CLASS} \
    T2I_MODEL_ID=${T2I_MODEL_ID} \
    T2I_MODEL_REVISION=${T2I_MODEL_REVISION} \
    PRESET=${PRESET} \
    LIGHTNING_LORA=${LIGHTNING_LORA} \
    T2I_LIGHTNING_LORA=${T2I_LIGHTNING_LORA} \
    LORAS=${LORAS}
USER 10001
RUN --mount=type=secret,id=HF_TOKEN,uid=10001 \
    if [ "${BAKE_MODEL}" = 1 ]; then \
        HF_TOKEN="$(cat /run/secrets/HF_TOKEN 2>/dev/null || true)" python -B -m qwen_worker.download; \
    fi
USER 0

COPY handler.py LICENSE ./
COPY qwen_worker ./qwen_worker
RUN python -m compileall -q handler.py qwen_worker

# A network volume belongs to root: build with RUN_AS=root if models are to be downloaded onto one.
ARG RUN_AS=worker
USER ${RUN_AS}

# Python itself is process 1: it gets RunPod's SIGTERM, and its end is the container's.
CMD ["python", "-u", "handler.py"]
