# The project and its environment for hosts with NVIDIA GPUs, x86-64 or aarch64; without a GPU it trains on the processor.
#   docker build -f launch/docker/cuda.Dockerfile -t kaiyuan:cuda .
#   docker run --rm --gpus all --ipc host --network host --ulimit memlock=-1 -v "$PWD:$PWD" -w "$PWD" kaiyuan:cuda \
#       /opt/kaiyuan/launch/train.sh train.yaml
# torch's wheel brings CUDA's libraries: of the host only the driver is needed, with NVIDIA's container toolkit.
# launch/make_env.sh decides what is installed; pip's own variables reach it as build arguments.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# The compiler builds the extensions, and Triton's kernels while they run; NCCL takes InfiniBand by the others.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ ibverbs-providers libibverbs1 librdmacm1 procps util-linux \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/kaiyuan
COPY LICENSE README.md pyproject.toml setup.py requirements.txt requirements-build.txt ./
COPY csrc csrc
COPY data_tools data_tools
COPY docs docs
COPY launch launch
COPY megatron_kaiyuan megatron_kaiyuan

ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
ENV KAIYUAN_VENV=/opt/kaiyuan/.venv
RUN PIP_NO_CACHE_DIR=1 KAIYUAN_NPU=0 bash launch/make_env.sh
ENV PATH=/opt/kaiyuan/.venv/bin:$PATH NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN kaiyuan --version
CMD ["kaiyuan", "--help"]
