#!/bin/sh
# What the machine does, as its root: the project installed by an ordinary user, then the tests of two users with lingering
# sessions, at the same time. What is printed appears on the host line by line; the results go back as one tar file.
set -u

JOB=/job
RESULTS=/tmp/results
STEP() { echo "machine: $* ($(cut -d ' ' -f 1 /proc/uptime) s after boot)"; }

# As a person at a login has it: inside the user's own systemd.
as() {
    user="$1"
    shift
    runuser -u "$user" -- env XDG_RUNTIME_DIR="/run/user/$(id -u "$user")" HOME="/home/$user" LANG=C.UTF-8 \
        PATH=/srv/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin "$@"
}

has_tests() { [ -e "$JOB/arguments-$1" ]; }

load() { as "$1" podman load --quiet --input "$JOB/base-image.tar"; }

# A disk with what the examples import, and the base image: Podman's storage, once its files belong to the user.
mount_storage() {
    place="/home/$1/.local/share" cache="/home/$1/.cache/podman-sandbox-runner"
    as "$1" mkdir -p "$place/containers/storage" "$place/podman-sandbox-runner" "$cache" || return
    mount -o noatime /dev/vdc "$place/containers/storage" && python3 "$JOB/tests/vm/own.py" "$1" "$place/containers/storage" &&
        as "$1" cp -r "$JOB/data/." "$place/podman-sandbox-runner" && { [ ! -e "$JOB/cache" ] || as "$1" cp "$JOB"/cache/* "$cache"; }
}

# The images for the tests of one user: loaded in the background, waited for with `loaded USER PID`.
load_tester() { ! has_tests tester || { load tester && load newcomer; }; }
load_colleague() {
    has_tests colleague || return 0
    if [ -e /dev/vdc ]; then mount_storage colleague; else load colleague; fi
}
loaded() {
    wait "$2" && return
    cat "$RESULTS/load-$1.txt"
    exit 1
}

run_tests() {
    has_tests "$1" || return 0
    STEP "testing as $1"
    {
        as "$1" systemd-run --user --pipe --wait --quiet --collect --working-directory="$JOB" \
            --setenv=PATH="/srv/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
            --setenv=SANDBOX_REQUIRE_PODMAN=1 --setenv=SANDBOX_REQUIRE_DELEGATION=1 \
            --setenv=SANDBOX_ONE_ENVIRONMENT=1 --setenv=SANDBOX_TESTS_SLOWER="$(cat slower)" \
            --setenv=CI="$(cat ci)" \
            /srv/venv/bin/python -m pytest -p no:cacheprovider --junit-xml="$RESULTS/$1/junit.xml" "@$JOB/arguments-$1" \
            </dev/null 2>&1
        echo $? >"$RESULTS/$1/status"
    } | sed --unbuffered "s/^/$1: /"
    STEP "tested as $1"
}

STEP "booted"
# Every container of a user is made through that user's systemd: wait for it, and know when it is not there.
for uid in 1000 1001 1002; do
    systemctl start "user@$uid.service" || exit 1
done
mkdir "$RESULTS"
install -d -o tester "$RESULTS/tester"
install -d -o colleague "$RESULTS/colleague"
chmod -R a+rX "$JOB"
# The kernel tier starts pytest again and again: what it has compiled is kept.
chown -R tester: "$JOB/tests"
cd "$JOB" || exit 1

STEP "loading the images, installing the project from its wheel"
load_tester >"$RESULTS/load-tester.txt" 2>&1 &
tester=$!
load_colleague >"$RESULTS/load-colleague.txt" 2>&1 &
colleague=$!
as tester /srv/venv/bin/python -m pip install --quiet --no-index --no-deps "$JOB"/*.whl || exit 1
loaded colleague "$colleague"
loaded tester "$tester"
STEP "ready"
# Other tests may have the processors: the host says when it is our turn. Until it has called, there is nothing to read.
exec 3</dev/virtio-ports/go
until read -r _ <&3; do sleep 0.5; done
exec 3<&-
run_tests colleague &
run_tests tester &
wait

journalctl --boot --no-pager --output=short-monotonic --priority=warning >"$RESULTS/journal.txt" 2>&1
STEP "done"
tar -C "$RESULTS" -cf /dev/virtio-ports/results tester colleague journal.txt
sync
