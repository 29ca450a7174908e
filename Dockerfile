# The service in a container: no torch, no root, nothing writable but a cache volume and /tmp.
#   docker build -t rdsr . && docker run --rm -p 8000:8000 --read-only --tmpfs /tmp:size=1g --stop-timeout 75 -v rdsr-cache:/cache rdsr
# /tmp takes results of more than 64 MiB while they are encoded, a file for each of two workers.
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/rdsr \
    && /opt/rdsr/bin/pip install --no-cache-dir -c constraints.txt '.[serve]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin rdsr \
    && mkdir /cache /models \
    && chown rdsr /cache
COPY --from=build /opt/rdsr /opt/rdsr
ENV PATH=/opt/rdsr/bin:$PATH RDSR_CACHE_DIR=/cache PYTHONDONTWRITEBYTECODE=1
USER 10001
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["rdsr", "serve", "--host", "0.0.0.0"]
