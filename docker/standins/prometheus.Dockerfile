# Stands in for docker.io/prom/prometheus where no image can be pulled: Prometheus of Debian.
ARG DEBIAN_IMAGE=docker.io/library/python:3.11-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends prometheus wget && rm -rf /var/lib/apt/lists/*
RUN install --directory --owner prometheus --group prometheus /prometheus
USER prometheus
VOLUME /prometheus
EXPOSE 9090
ENTRYPOINT ["prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
