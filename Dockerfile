# hada-pipeline in an image; README and docs/pipelines.md say how it is used.
#   docker build -t hada:cpu .
#   docker build -t hada:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# PyTorch's wheels carry CUDA's libraries, so both are built on the same slim base; the driver is the
# host's, as always in containers.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# First what is large and changes rarely.
RUN python -m venv /opt/hada \
    && /opt/hada/bin/pip install --index-url "${TORCH_INDEX}" torch torchvision
WORKDIR /src
COPY . .
RUN /opt/hada/bin/pip install '.[s3,jobqueue]'

FROM python:${PYTHON}-slim
COPY --from=build /opt/hada /opt/hada
ENV PATH=/opt/hada/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --uid 1000 --create-home hada
# A number: Kubernetes cannot tell of a name that it is not root's.
USER 1000
WORKDIR /data
# In exec form, so that SIGTERM reaches it.
ENTRYPOINT ["hada-pipeline"]
CMD ["--help"]
