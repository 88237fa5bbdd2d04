# Stands in for docker.io/library/postgres where no image can be pulled: PostgreSQL of Debian, started from the same
# variables (POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB) on the same folder.
ARG DEBIAN_IMAGE=docker.io/library/python:3.11-slim
FROM ${DEBIAN_IMAGE}
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends postgresql \
    && rm -rf /var/lib/apt/lists/* /var/lib/postgresql/*/main \
    && groupmod --non-unique --gid 999 postgres && usermod --non-unique --uid 999 postgres \
    && install --directory --owner postgres --group postgres --mode 1777 /var/lib/postgresql /run/postgresql \
    && ln -s /usr/lib/postgresql/*/bin/pg_isready /usr/local/bin/pg_isready
COPY postgres.sh /usr/local/bin/postgres-start
ENV PGDATA=/var/lib/postgresql/18/docker
USER postgres
VOLUME /var/lib/postgresql
EXPOSE 5432
STOPSIGNAL SIGINT
ENTRYPOINT ["postgres-start"]
CMD ["postgres"]
