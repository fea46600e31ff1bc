# The environment and the project; `docs/how-to/install.md` has the commands. By default with the CUDA builds of torch, which
# compute on a CPU, too; with --build-arg TORCH_INDEX=<index of CPU builds> with those, which are much smaller.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim

# g++ is for train.compile.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home reparam \
    && install --directory --owner reparam /home/reparam/project
USER reparam
WORKDIR /home/reparam/project
ENV VENV=/home/reparam/venv
ENV PATH=${VENV}/bin:${PATH} PIP_NO_CACHE_DIR=1

# Dependencies first, with an empty package, so that a change of the source installs nothing again.
ARG TORCH_INDEX=""
COPY --chown=reparam Makefile pyproject.toml constraints.txt README.md LICENSE ./
RUN mkdir -p src/reparam \
    && touch src/reparam/__init__.py \
    && PIP_EXTRA_INDEX_URL=${TORCH_INDEX} make install
COPY --chown=reparam . .
CMD ["make", "run"]
