#!/usr/bin/env bash
# Bring the composition up, use it, take parts of it away under load, and take it down again with all it kept.
#
#   docker/production/check.sh
#   ENGINE=podman COMPOSE="podman-compose" OVERRIDE=hosts.yaml docker/production/check.sh
#
# ENGINE, COMPOSE   what kills containers, what composes them (docker, "docker compose")
# OVERRIDE          one more compose file, for what is different here (ports, networks)
# BUILD_OPTIONS     more words for the image's build; SKIP_BUILD=1 takes the image that is there
# PYTHON            a Python with the packages of the `dev` extra (.venv/bin/python, else python)
# URL, API_URLS     the proxy; also the API processes, where they can be reached (commas between)
# PROMETHEUS_URL    Prometheus
set -euo pipefail
cd "$(dirname "$0")/../.."

engine=${ENGINE:-docker}
url=${URL:-http://127.0.0.1:${SPOLIA_PORT:-8000}}
prometheus=${PROMETHEUS_URL:-http://127.0.0.1:${PROMETHEUS_PORT:-9090}}
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python)}
project=spolia-check
here=docker/production
key_file=$here/secrets/metrics-key
export POSTGRES_PASSWORD=${POSTGRES_PASSWORD:-check-$RANDOM$RANDOM} S3_SECRET_KEY=${S3_SECRET_KEY:-check-$RANDOM$RANDOM}

say() { printf '%s\n' "$*"; }

compose() {
    # shellcheck disable=SC2086  # these are words
    ${COMPOSE:-$engine compose} --project-name "$project" --file "$here/compose.yaml" \
        ${OVERRIDE:+--file "$OVERRIDE"} "$@"
}

# The container of a service; what composes joins the words by - or _.
container() { "$engine" ps --all --format '{{.Names}}' | grep -E "^${project}[-_]$1[-_]1\$"; }

fail() {
    local service
    say "FAILED: $*" >&2
    for service in ${2:-api-1 worker-1 proxy}; do
        say "--- $service" >&2
        "$engine" logs --tail 30 "$(container "$service")" >&2 || true
    done
    exit 1
}

# Keys of an earlier composition are somebody's: they are put back.
kept=$(mktemp -d)
clean_up() {
    compose down --volumes > "$kept/down.log" 2>&1 || tail -5 "$kept/down.log" >&2
    rm -f "$key_file"
    if [ -e "$kept/metrics-key" ]; then mv "$kept/metrics-key" "$key_file"; fi
    rm -rf "$kept"
}

build() {
    local options=${BUILD_OPTIONS:-}
    # Podman's own image format knows no health check.
    if [ "$engine" = podman ]; then options="--format docker $options"; fi
    # shellcheck disable=SC2086
    "$engine" build $options --file docker/Dockerfile --tag spolia .
}

get() { curl --silent --show-error --fail --max-time 60 --header "Authorization: Bearer ${SPOLIA_API_KEY:-}" "$@"; }

# until_true SECONDS WHAT COMMAND...: waits until the command succeeds.
until_true() {
    local limit=$1 what=$2 began=$SECONDS
    shift 2
    until "$@" > /dev/null 2>&1; do
        [ $((SECONDS - began)) -lt "$limit" ] || fail "$what: not within $limit s"
        sleep 1
    done
    say "  $what after $((SECONDS - began)) s"
}

inside() { "$engine" exec "$(container "$1")" "${@:2}"; }

check_walls() {
    local service status
    for service in api-1 api-2 worker-1 worker-2; do
        status=$(inside "$service" sh -c 'grep -hE "^(Uid|CapEff):" /proc/[0-9]*/status')
        status=$(grep -vE '^Uid:(\s+10001){4}$|^CapEff:\s+0+$' <<< "$status" || true)
        [ -z "$status" ] || fail "$service: not every process is user 10001 without capabilities: $status"
        if inside "$service" touch /opt/spolia/written 2> /dev/null; then fail "$service can write to its image"; fi
    done
    for service in proxy prometheus; do
        if inside "$service" touch /etc/written 2> /dev/null; then fail "$service can write to its image"; fi
    done
    say "  read-only; no process of Spolia's has a privilege"
}

make_keys() {
    local answer
    answer=$(curl --silent --output /dev/null --write-out '%{http_code}' "$url/v1/adapters")
    [ "$answer" = 401 ] || fail "without a key the proxy answers $answer, not 401"
    SPOLIA_API_KEY=$(inside api-1 spolia keys create root --grant '*=admin' --local 2> /dev/null | tr -d '\r')
    export SPOLIA_API_KEY
    inside api-2 spolia keys create prometheus --grant '*=read' --local 2> /dev/null > "$key_file"
    chmod 644 "$key_file"
    get --output /dev/null "$url/v1/adapters" || fail "the key does not open the door"
    answer=$(curl --silent --output /dev/null --write-out '%{http_code}' "$url/metrics")
    [ "$answer" = 404 ] || fail "the proxy answers $answer, not 404, to /metrics"
    say "  a key for the tests and one for Prometheus; without one: 401"
}

healthy() {
    local service
    for service in api-1 api-2 worker-1 worker-2 postgres store proxy prometheus; do
        if [ "$engine" = podman ]; then podman healthcheck run "$(container "$service")" || return 1
        else [ "$("$engine" inspect --format '{{.State.Health.Status}}' "$(container "$service")")" = healthy ] || return 1
        fi
    done
}

targets_up() {
    curl --silent --fail "$prometheus/api/v1/query?query=sum(up)" | grep -q "\"$1\"\]"
}

end_to_end() {
    SPOLIA_E2E_URLS=$1 PYTHONPATH=. "$python" -m pytest --quiet -p no:cacheprovider tests/e2e/test_composition.py \
        || fail "the end-to-end tests at $1"
}

# The tests go on through the proxy while one API and one worker are killed; afterwards both are started again.
kill_under_load() {
    local load
    SPOLIA_E2E_URLS=$url PYTHONPATH=. "$python" $here/under_load.py "$kept/asked" & load=$!
    until_true 120 "load is on" test -s "$kept/asked"
    "$engine" kill --signal KILL "$(container api-1)" "$(container worker-1)" > /dev/null
    say "  killed api-1 and worker-1"
    wait "$load" || fail "what was asked for while they were away" "api-2 worker-2"
    "$engine" start "$(container api-1)" "$(container worker-1)" > /dev/null 2>&1
    until_true 180 "all well again" healthy
}

trap clean_up EXIT
if [ -e "$key_file" ]; then mv "$key_file" "$kept/metrics-key"; fi
: > "$key_file"
if [ -z "${SKIP_BUILD:-}" ]; then
    say "building the image …"
    build
fi
say "starting the composition"
compose up --detach --no-build > "$kept/up.log" 2>&1 || { cat "$kept/up.log" >&2; exit 1; }
until_true 300 "ready" get --output /dev/null "$url/readyz"
until_true 180 "all healthy" healthy
check_walls
make_keys
say "the end-to-end tests"
end_to_end "$url"
if [ -n "${API_URLS:-}" ]; then end_to_end "$API_URLS"; fi
until_true 90 "Prometheus sees all four processes" targets_up 4
say "killing one API and one worker under load"
kill_under_load
until_true 90 "Prometheus sees all four processes" targets_up 4
inside api-2 spolia fsck > /dev/null || fail "files do not match their rows"
say "  every version has its files"
say "OK"
