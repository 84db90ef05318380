# denet in a container: docs/docker.md. Another torch: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128
FROM python:3.11-slim-bookworm

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

# What changes seldom comes first: the dependencies are a layer that survives changes of the source.
WORKDIR /opt/denet
RUN pip install --index-url "$TORCH_INDEX" "torch==2.11.*" "torchaudio==2.11.*"
# Triton, which comes with PyTorch for GPUs, builds what starts its kernels with a C compiler.
# hadolint ignore=DL3008
RUN case "$TORCH_INDEX" in */cpu) ;; *) apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* ;; esac
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" > base.txt \
    && pip install --extra-index-url "$TORCH_INDEX" -r base.txt

COPY setup.py README.md LICENSE ./
COPY denet_program.py ./
COPY denet_torch denet_torch
COPY reference_tf reference_tf
COPY training training
COPY tools tools
RUN pip install --no-deps . && denet --version

# Caches of compiled kernels and of matplotlib need a place that any user may write to.
ENV NUMBA_CACHE_DIR=/tmp/numba MPLCONFIGDIR=/tmp/matplotlib HOME=/tmp
RUN useradd --create-home --uid 1000 denet
USER 1000
WORKDIR /work
ENTRYPOINT ["denet"]
CMD ["--help"]
