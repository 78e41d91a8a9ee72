# Mask R-CNN for nuclei, on NVIDIA GPUs (without one it runs on the CPU).
#
#   docker build --tag mrcnn .
#   docker run --gpus all --volume /my/dsb2018:/data mrcnn \
#       detect --dataset /data --subset stage1_test --weights nucleus
#
# README.md says more. TensorFlow brings its own CUDA libraries; the host needs the NVIDIA driver
# and the NVIDIA container toolkit.
FROM python:3.12-slim

ENV PYTHONUNBUFFERED=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    MPLCONFIGDIR=/tmp/matplotlib \
    MRCNN_CACHE=/app/weights

# Folders that a volume is mounted over must belong to the user that writes there.
RUN useradd --create-home --uid 1000 mrcnn \
    && install --directory --owner=mrcnn --group=mrcnn \
        /data /app/weights /app/logs /app/results

WORKDIR /app

# The dependencies first: they are large, and only a change of these files installs them again.
COPY setup.cfg pyproject.toml README.md LICENSE ./
RUN mkdir -p weights $(sed -n 's,^    mrcnn\.\([a-z]*\)$,mrcnn/\1,p' setup.cfg) \
    && touch mrcnn/__init__.py \
    && pip install --no-cache-dir --editable ".[gpu]"

COPY --chown=mrcnn:mrcnn weights weights
COPY samples samples
COPY mrcnn mrcnn

USER 1000
VOLUME ["/data", "/app/weights", "/app/logs", "/app/results"]
ENTRYPOINT ["python", "/app/samples/nucleus/nucleus.py"]
CMD ["--help"]
