# Headwater in one image: `headwater up` by default, and any other command of it by name. Nothing in it needs root,
# and building it needs the base image and the package registry, no other network.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONDONTWRITEBYTECODE=1
WORKDIR /build
# The dependencies change seldom: a layer of their own, before the code.
COPY requirements/runtime.txt requirements/
RUN python -m venv --without-pip /opt/headwater \
    && pip --python /opt/headwater install --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY requirements/build.txt requirements/
RUN pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md ./
COPY schemas schemas
COPY streams streams
COPY handlers handlers
COPY projections projections
COPY headwater headwater
RUN python -m hatchling build -t wheel \
    && pip --python /opt/headwater install --no-deps --no-index dist/*.whl

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin headwater \
    && install -d -o headwater -g headwater /data /team
COPY --from=build /opt/headwater /opt/headwater
# /team is for the user's own team: mounted, or copied by an image made from this one.
ENV PATH=/opt/headwater/bin:$PATH PYTHONPATH=/team PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HEADWATER_DATA=/data HEADWATER_HOST=0.0.0.0
WORKDIR /team
USER 10001:10001
VOLUME /data
EXPOSE 8080
HEALTHCHECK --interval=15s --timeout=10s --start-period=60s --retries=4 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/readyz', timeout=8)"]
ENTRYPOINT ["headwater"]
CMD ["up"]
