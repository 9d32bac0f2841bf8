# The library with all extras, for NVIDIA GPUs; the wheels of torch contain CUDA, so the host needs
# only a driver that is recent enough for it, and the NVIDIA Container Toolkit.
#
#   docker build --tag pdmd .
#   docker run --rm --gpus all --ipc host --volume "$PWD:/work" pdmd distill my.toml
#
# On all GPUs of the host (examples/launch/torchrun.sh states its variables):
#
#   docker run --rm --gpus all --ipc host --ulimit memlock=-1 --volume "$PWD:/work" \
#       --entrypoint /opt/pdmd/examples/launch/torchrun.sh pdmd my.toml
#
# Ranks share memory (--ipc host). Weights of the hub are kept with
# --volume "$HOME/.cache/huggingface:/hub" --env HF_HOME=/hub.
FROM python:3.11-slim

# torch.compile's kernels are built with a C compiler at run time.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc g++ \
    && rm -rf /var/lib/apt/lists/*

# torch first: its layer is several gigabytes, and changes less often than the rest.
ARG TORCH=2.13.0
RUN pip install --no-cache-dir "torch==${TORCH}"

WORKDIR /opt/pdmd
COPY pyproject.toml README.md LICENSE ./
COPY pdmd pdmd
COPY examples examples
RUN pip install --no-cache-dir '.[all]'

WORKDIR /work
ENTRYPOINT ["pdmd"]
