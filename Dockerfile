# Image of the command `sparsecap`. Build arguments: PYTHON (3.11 to 3.13), and CUDA (12 or 13; empty: CPU).
#   docker build --tag sparsecap .
#   docker build --tag sparsecap:cuda --build-arg CUDA=13 .
#   docker run --rm sparsecap caption --example
#   docker run --rm --gpus=all --volume="$PWD:/work" sparsecap:cuda train --config=configs/toy.py ...
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
RUN python -m venv /opt/sparsecap
ENV PATH=/opt/sparsecap/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# A layer of its own: edits of the package do not install its requirements again.
COPY requirements.txt ./
RUN pip install --no-deps --require-hashes -r requirements.txt
# The wheels of CUDA come with the plugin of the same version as JAX; the host needs the driver only.
ARG CUDA=
RUN if [ -n "$CUDA" ]; then \
        pip install "jax[cuda$CUDA]==$(python -c 'from importlib.metadata import version as v; print(v("jax"))')"; \
    fi
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY sparsecap_jax sparsecap_jax
COPY launch launch
COPY configs configs
RUN pip install --no-deps --no-build-isolation .

FROM python:${PYTHON}-slim
# Java, for METEOR. Debian keeps only the newest version of a package.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends default-jre-headless \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid=1000 sparsecap \
    && install --directory --owner=sparsecap /work
COPY --from=build /opt/sparsecap /opt/sparsecap
ENV PATH=/opt/sparsecap/bin:$PATH
USER 1000
WORKDIR /work
ENTRYPOINT ["sparsecap"]
CMD ["--help"]
