#!/usr/bin/env bash
# Build the image and try it as compose.yaml runs it: read-only, without privileges, data in a volume.
#
#   docker/check.sh
#   CONTAINER_ENGINE=podman BUILD_OPTIONS="--volume /wheels:/wheels:ro" docker/check.sh
#
# CONTAINER_ENGINE  docker or podman (default: the one that is there and answers)
# BUILD_OPTIONS     more words for `build`, such as --build-arg PIP_EXTRA_INDEX_URL=… (docker/README.md says which)
# RUN_OPTIONS       more words for `run`
# IMAGE, PORT       name of the image (spolia), port on 127.0.0.1 (8765)
# ADAPTERS          folder with two adapters or more (examples/adapters)
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-spolia}
port=${PORT:-8765}
adapters=${ADAPTERS:-examples/adapters}
url=http://127.0.0.1:$port
container=spolia-check-$$
volume=spolia-check-$$

say() { printf '%s\n' "$*"; }

fail() {
    say "FAILED: $*" >&2
    "$engine" logs --tail 40 "$container" >&2 || true
    exit 1
}

find_engine() {
    local found
    command -v curl > /dev/null || { say "This check needs curl." >&2; exit 1; }
    for found in ${CONTAINER_ENGINE:-docker podman}; do
        if "$found" info > /dev/null 2>&1; then engine=$found; return; fi
    done
    say "No container engine answers (tried: ${CONTAINER_ENGINE:-docker podman}). Start Docker, or install podman." >&2
    exit 1
}

clean_up() {
    "$engine" rm --force "$container" > /dev/null 2>&1 || true
    "$engine" volume rm "$volume" > /dev/null 2>&1 || true
}

build() {
    local options=${BUILD_OPTIONS:-}
    # Podman's own image format knows no health check.
    if [ "$engine" = podman ]; then options="--format docker $options"; fi
    # shellcheck disable=SC2086  # these are words
    "$engine" build $options --file docker/Dockerfile --tag "$image" .
}

start() {
    # SPOLIA_PORT too, so that it also works where containers share the host's network.
    # shellcheck disable=SC2086  # RUN_OPTIONS are words
    "$engine" run --detach --name "$container" --publish "127.0.0.1:$port:$port" --env "SPOLIA_PORT=$port" \
        --volume "$volume:/data" --read-only --tmpfs /tmp:size=64m,mode=1777 --cap-drop ALL \
        --security-opt no-new-privileges --init ${RUN_OPTIONS:-} "$image" > /dev/null
}

wait_until_ready() {
    local began=$SECONDS
    until curl --silent --fail --max-time 5 "$url/readyz" > /dev/null 2>&1; do
        [ "$("$engine" inspect --format '{{.State.Running}}' "$container")" = true ] || fail "the service ended"
        [ $((SECONDS - began)) -lt 180 ] || fail "not ready after 180 s"
        sleep 1
    done
    say "  ready after $((SECONDS - began)) s"
}

inside() { "$engine" exec "$container" "$@"; }
spolia() { inside spolia --url "$url" "$@"; }
get() { curl --silent --show-error --fail --max-time 120 "$@"; }

check_walls() {
    local processes others
    processes=$(inside sh -c 'grep -hE "^(Uid|CapEff):" /proc/[0-9]*/status')
    others=$(grep -vE '^Uid:(\s+10001){4}$|^CapEff:\s+0+$' <<< "$processes" || true)
    [ -z "$others" ] || fail "not every process is user 10001 without capabilities: $others"
    if inside touch /opt/spolia/written 2> /dev/null; then fail "the image can be written to"; fi
    say "  user 10001, no capabilities, nothing but /data and /tmp can be written"
}

check_health() {
    local began=$SECONDS health
    if [ "$engine" = podman ]; then
        podman healthcheck run "$container" > /dev/null || fail "the health check fails"
    else
        until health=$("$engine" inspect --format '{{.State.Health.Status}}' "$container"); [ "$health" = healthy ]; do
            [ $((SECONDS - began)) -lt 90 ] || fail "the engine says the container is $health"
            sleep 2
        done
    fi
    say "  healthy"
}

use() {
    local folder name refs=()
    for folder in "$adapters"/*/; do
        name=check/$(basename "$folder")
        get --output /dev/null --form "config=@$folder/adapter_config.json" \
            --form "weights=@$folder/adapter_model.safetensors" "$url/v1/adapters/$name/versions" \
            || fail "upload of $folder"
        refs+=("$name")
        [ ${#refs[@]} -lt 2 ] || break
    done
    [ ${#refs[@]} -eq 2 ] || fail "$adapters does not have two adapters"
    say "  uploaded ${refs[*]}"
    spolia merge check/both "${refs[@]}" > /dev/null || fail "the merge"
    get "$url/v1/adapters/check/both/versions/latest/report" > /dev/null || fail "the merge's report"
    say "  merged them into check/both@1"
    talk
}

talk() {
    get --header 'Content-Type: application/json' \
        --data '{"model": "check/both", "prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}' \
        "$url/v1/completions" > /dev/null || fail "generation with the merged adapter"
    say "  generated with it"
}

restart() {
    local began=$SECONDS code
    "$engine" stop --time 30 "$container" > /dev/null
    code=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
    # 143: it ended in good order, then by the signal it was sent, as a program should.
    [[ $code =~ ^(0|143)$ ]] || fail "told to stop, the service ended with code $code"
    if "$engine" logs "$container" 2>&1 | grep -E 'Traceback|Fatal|CRITICAL'; then fail "the log has errors"; fi
    say "  stopped in $((SECONDS - began)) s, without a complaint"
    "$engine" rm "$container" > /dev/null
    start
    wait_until_ready
    get "$url/v1/adapters/check/both/versions/1" > /dev/null || fail "the merged version is gone"
    talk
}

find_engine
trap clean_up EXIT
say "building $image with $engine …"
build
say "starting it"
start
wait_until_ready
check_walls
check_health
use
say "starting it again with the same volume"
restart
bytes=$("$engine" image inspect --format '{{.Size}}' "$image")
say "OK: $image, $((bytes / 1000000)) MB"
