# CPU:   docker build -t agman .
# CUDA:  docker build -t agman:cuda --build-arg TORCH_INDEX= .   (run with --gpus all)
# Use:   docker run --rm -v "$PWD:/work" agman COMMAND ...
FROM python:3.13-slim

# torch and torchvision come from this index, because they must fit each other; PyPI's files bring CUDA's libraries.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY . /opt/agman
RUN grep -E '^(torch|torchvision)==' /opt/agman/constraints.txt > /tmp/torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement /tmp/torch.txt \
    && pip install --no-cache-dir --constraint /opt/agman/constraints.txt '/opt/agman[export,heic,weights]' \
    && useradd --create-home agman

USER agman
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["agman"]
