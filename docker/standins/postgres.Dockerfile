# Stands in for docker.io/library/postgres where no image can be pulled: PostgreSQL of Debian, started from the same
# variables (POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB) on the same folder.
ARG DEBIAN_IMAGE=docker.io/library/python:3.11-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/*/main \
    && install --directory --owner postgres --group postgres --mode 700 /var/lib/postgresql/data
COPY postgres.sh /usr/local/bin/postgres-start
ENV PGDATA=/var/lib/postgresql/data
USER postgres
VOLUME /var/lib/postgresql/data
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-start"]
CMD ["postgres"]
