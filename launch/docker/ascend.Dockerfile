# The project and its environment for hosts with Ascend NPUs, aarch64 (Kunpeng) or x86-64.
#   docker build -f launch/docker/ascend.Dockerfile -t kaiyuan:ascend .
#   docker build -f launch/docker/ascend.Dockerfile --build-arg CHIP=910 -t kaiyuan:910 .      the first generation
# docs/npu.md has the `docker run` line with the devices and the driver's folders, and what is known of which CANN fits
# torch_npu. Another base (--build-arg BASE=IMAGE) needs CANN with the operators of your chip, and Python 3.11 or newer with
# Python.h.
# launch/make_env.sh decides what is installed; pip's own variables reach it as build arguments.
ARG CANN=9.0.0
ARG CHIP=910b
ARG BASE=quay.io/ascend/cann:${CANN}-${CHIP}-ubuntu22.04-py3.11
FROM ${BASE}

# Ubuntu's and openEuler's names of the same.
# hadolint ignore=DL3008,DL3040,DL3041
RUN if command -v apt-get; then \
        apt-get update && apt-get install -y --no-install-recommends g++ procps util-linux && rm -rf /var/lib/apt/lists/*; \
    else \
        dnf install -y gcc-c++ procps-ng util-linux && dnf clean all; \
    fi

WORKDIR /opt/kaiyuan
COPY LICENSE README.md pyproject.toml setup.py requirements.txt requirements-build.txt requirements-npu.txt ./
COPY csrc csrc
COPY data_tools data_tools
COPY docs docs
COPY launch launch
COPY megatron_kaiyuan megatron_kaiyuan

ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL
ENV KAIYUAN_VENV=/opt/kaiyuan/.venv
# The machine that builds the image has no NPU.
RUN PIP_NO_CACHE_DIR=1 KAIYUAN_NPU=1 bash launch/make_env.sh
ENV PATH=/opt/kaiyuan/.venv/bin:$PATH
RUN kaiyuan --version
CMD ["kaiyuan", "--help"]
