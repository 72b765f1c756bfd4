# syntax=docker/dockerfile:1.7

# The detector as a service. CPU:      docker build -t ra-hmd:cpu .
# NVIDIA GPUs: docker build -t ra-hmd:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
# PyTorch's wheels bring CUDA's libraries along, so both stand on the same base. See docs/deploy.md.

ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY configs configs
COPY llamafactory_ext llamafactory_ext
COPY ra_hmd ra_hmd
COPY stage2 stage2
RUN --mount=type=cache,target=/root/.cache/pip pip wheel --no-deps --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS environment
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=lmm,milvus,ocr,postgresql,serve
RUN python -m venv /opt/ra-hmd
ENV PATH=/opt/ra-hmd/bin:$PATH
# A version of that index ends in +cpu or +cu130, and so comes before the same version of PyPI.
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels --mount=type=cache,target=/root/.cache/pip \
    pip install --extra-index-url "${TORCH_INDEX}" "$(echo /wheels/*.whl)[${EXTRAS}]" \
    && pip freeze > /opt/ra-hmd/requirements.txt

FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="ra-hmd" \
      org.opencontainers.image.licenses="Apache-2.0"
# No package of Debian: the wheels bring their libraries along. A volume takes over the mode of the folder that it is
# mounted at, and whoever runs the container (RA_HMD_UID) must be able to fill it.
RUN groupadd --gid 10001 ra-hmd \
    && useradd --no-log-init --create-home --uid 10001 --gid 10001 ra-hmd \
    && install -d -m 755 /home/ra-hmd /home/ra-hmd/.cache \
    && install -d -m 1777 /home/ra-hmd/.cache/huggingface
COPY --from=environment /opt/ra-hmd /opt/ra-hmd
# What GET /v1/info and the metrics call the build: --build-arg RA_HMD_BUILD="$(git rev-parse HEAD)".
ARG RA_HMD_BUILD=
ENV RA_HMD_BUILD=${RA_HMD_BUILD}
ENV PATH=/opt/ra-hmd/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /home/ra-hmd
EXPOSE 8000
# Opening a large model takes minutes.
HEALTHCHECK --interval=30s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["ra-hmd"]
CMD ["serve", "--help"]
