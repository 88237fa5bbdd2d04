# Stands in for docker.io/library/nginx where no image can be pulled: nginx of Debian.
ARG DEBIAN_IMAGE=docker.io/library/python:3.11-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update && apt-get install --yes --no-install-recommends curl nginx-light && rm -rf /var/lib/apt/lists/*
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
