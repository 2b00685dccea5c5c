# An image of hada-pipeline; docs/pipelines.md describes its use.
#   docker build -t hada:cpu .
#   docker build -t hada:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# PyTorch's wheels contain CUDA's libraries, so both images use the same slim base. The driver comes from
# the host.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Large layers that change rarely come first.
RUN python -m venv /opt/hada \
    && /opt/hada/bin/pip install --index-url "${TORCH_INDEX}" torch torchvision
WORKDIR /src
COPY . .
RUN /opt/hada/bin/pip install '.[s3,jobqueue]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/hada /opt/hada
ENV PATH=/opt/hada/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home hada
# A number, because Kubernetes cannot check that a name is not root.
USER 1000
WORKDIR /data
# Exec form, so that SIGTERM reaches the process.
ENTRYPOINT ["hada-pipeline"]
CMD ["--help"]
