#!/bin/sh
# What the machine does, as its root: the project installed by an ordinary user with a lingering session, then the tests.
# What is printed appears on the host line by line; the results go back as one tar file.
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

STEP "booted"
# Every container of a user is made through that user's systemd: wait for it, and know when it is not there.
for uid in 1000 1001; do
    systemctl start "user@$uid.service" || exit 1
done
mkdir -p "$RESULTS"
chown -R tester: "$JOB" "$RESULTS"
chmod 0755 "$JOB"
cd "$JOB" || exit 1

load() { as "$1" podman load --quiet --input "$JOB/base-image.tar" >"$RESULTS/load-$1.txt" 2>&1; }
load newcomer &
other=$!
STEP "installing the project from its wheel"
as tester /srv/venv/bin/python -m pip install --quiet --no-index --no-deps "$JOB"/*.whl || exit 1
STEP "loading the base image"
load tester || { cat "$RESULTS/load-tester.txt"; exit 1; }
wait "$other" || { cat "$RESULTS/load-newcomer.txt"; exit 1; }

if [ -e "$JOB/libraries" ]; then
    STEP "loading the libraries of the examples"
    # shellcheck disable=SC2016 # expanded by the inner shell
    as tester sh -c 'podman tag "$(podman pull --quiet "dir:$1")" "$(cat "$1-name")"' sh "$JOB/libraries" >"$RESULTS/load-libraries.txt" 2>&1 || { cat "$RESULTS/load-libraries.txt"; exit 1; }
    rm -r "$JOB/libraries"
    # shellcheck disable=SC2016 # expanded by the inner shell
    as tester sh -c 'place="$HOME/.local/share/podman-sandbox-runner" && mkdir -p "$place" && cp -r "$1/." "$place"' sh "$JOB/data" || exit 1
fi

STEP "testing"
as tester systemd-run --user --pipe --wait --quiet --collect --working-directory="$JOB" \
    --setenv=PATH="/srv/venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    --setenv=SANDBOX_REQUIRE_PODMAN=1 --setenv=SANDBOX_REQUIRE_DELEGATION=1 \
    --setenv=SANDBOX_ONE_ENVIRONMENT=1 --setenv=SANDBOX_TESTS_SLOWER="$(cat slower)" \
    --setenv=PYTHONDONTWRITEBYTECODE=1 --setenv=CI="$(cat ci)" \
    /srv/venv/bin/python -m pytest -p no:cacheprovider --junit-xml="$RESULTS/junit.xml" "@$JOB/pytest-arguments" </dev/null
echo $? >"$RESULTS/status"
journalctl --boot --no-pager --output=short-monotonic --priority=warning >"$RESULTS/journal.txt" 2>&1
STEP "done"
tar -C "$RESULTS" -cf /dev/virtio-ports/results junit.xml status journal.txt
sync
