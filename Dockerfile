# CPU:   docker build -t agman --build-arg TORCH_INDEX="$CPU_INDEX" .   (docs/installing.md says what that is)
# CUDA:  docker build -t agman:cuda .   (run with --gpus all)
# Use:   docker run --rm -v "$PWD:/work" agman COMMAND ...
FROM python:3.13-slim

# torch and torchvision come from this index, because they must fit each other. Without one they come from PyPI, whose
# files bring CUDA's libraries.
ARG TORCH_INDEX=

COPY . /opt/agman
RUN grep -E '^(torch|torchvision)==' /opt/agman/constraints.txt > /tmp/torch.txt \
    && pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement /tmp/torch.txt \
    && pip install --no-cache-dir --constraint /opt/agman/constraints.txt '/opt/agman[export,heic,weights]' \
    && useradd --uid 1000 agman

# Caches of libraries; any user of `docker run --user` may write there.
ENV HOME=/tmp
USER 1000
WORKDIR /work
EXPOSE 8000
ENTRYPOINT ["agman"]
