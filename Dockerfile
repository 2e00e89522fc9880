# syntax=docker/dockerfile:1

FROM python:3.11-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /srv/licentia
COPY requirements/uv.txt requirements/run.txt requirements/
RUN python -m venv /opt/uv \
    && /opt/uv/bin/pip install --require-hashes -r requirements/uv.txt \
    && python -m venv --without-pip .venv \
    && /opt/uv/bin/uv pip install --python .venv/bin/python --require-hashes -r requirements/run.txt
COPY . .
# Manifest names, as in production, need no database and no secret: collected with the keys of nobody.
RUN LICENTIA_ENV=production SECRET_KEY=build-only PUBLIC_URL=https://build.invalid \
    DATABASE_URL=sqlite:////tmp/build.sqlite3 VAR_DIR=/tmp/var \
    .venv/bin/python manage.py collectstatic --noinput --skip-checks \
    && .venv/bin/python -m compileall -q portal billing licensing

FROM python:3.11-slim
ENV PATH=/srv/licentia/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    LICENTIA_ENV=production VAR_DIR=/var/lib/licentia PORT=8000
RUN groupadd --gid 10001 licentia \
    && useradd --uid 10001 --gid licentia --no-create-home --home-dir /var/lib/licentia --shell /usr/sbin/nologin licentia \
    && install --directory --owner licentia --group licentia --mode 0700 /var/lib/licentia /keys /audit
WORKDIR /srv/licentia
# Owned by root: the program cannot change itself.
COPY --from=build /srv/licentia /srv/licentia
USER licentia
EXPOSE 8000
VOLUME /var/lib/licentia
# Live, not ready: a container that answers but misses its database is not mended by a restart.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(r.Request('http://127.0.0.1:' + os.environ['PORT'] + '/health/live', headers={'Host': os.environ['ALLOWED_HOSTS'].split(',')[0]}), timeout=4)"]
CMD ["python", "manage.py", "serve", "--host", "0.0.0.0"]
