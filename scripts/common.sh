# shellcheck shell=bash
# What the scripts share. Sourced, never run: it only defines names.

PROJECT=podman-sandbox-runner
# For the tests there is a second account, which runs half of them: `tests_account`.
SANDBOX_USER=sandbox

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'fix:   %s\n' "$2" >&2
    exit 1
}
is_root() { [ "$(id -u)" -eq 0 ]; }
tests_account() { if is_root; then echo sandbox-tests; else id -un; fi; }
runs_as() { if is_root; then echo "$SANDBOX_USER"; else id -un; fi; }
# The account's own word, where it exists: the program follows it, too.
home_directory() {
    if is_root; then
        getent passwd "$SANDBOX_USER" | cut -d: -f6 | grep . || echo "/var/lib/$SANDBOX_USER"
    else
        echo "$HOME"
    fi
}

# The virtual environment: root's is read by the user `sandbox`, who must not be able to change it.
venv_directory() {
    if is_root; then
        echo "/opt/$PROJECT"
    else
        local data="${XDG_DATA_HOME:-}"
        case "$data" in /*) ;; *) data="$HOME/.local/share" ;; esac
        echo "$data/$PROJECT/venv"
    fi
}

runtime_directory() {
    if is_root; then
        echo "/run/user/$(id -u "$SANDBOX_USER")"
    elif [[ "${XDG_RUNTIME_DIR:-}" = /* && -d "$XDG_RUNTIME_DIR" && -O "$XDG_RUNTIME_DIR" ]]; then
        echo "$XDG_RUNTIME_DIR"
    else # missing, or another user's: after su, in cron
        echo "/run/user/$(id -u)"
    fi
}

# Set UNPRIVILEGED: what to put before a command so that it runs as the unprivileged user. Root's environment stays
# behind, apart from what says how to reach the network (proxies, certificates) and what steers the tests.
set_unprivileged() {
    if ! is_root; then
        UNPRIVILEGED=(env "XDG_RUNTIME_DIR=$(runtime_directory)")
        return
    fi
    local name kept=()
    for name in http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY \
        SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE PIP_CERT CURL_CA_BUNDLE PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST \
        TERM NO_COLOR CI SANDBOX_REQUIRE_PODMAN SOURCE_DATE_EPOCH; do
        [ -z "${!name:-}" ] || kept+=("$name=${!name}")
    done
    UNPRIVILEGED=(
        setpriv --reuid "$SANDBOX_USER" --regid "$SANDBOX_USER" --init-groups --inh-caps=-all
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "HOME=$(home_directory)"
        "USER=$SANDBOX_USER" "LOGNAME=$SANDBOX_USER" LANG=C.UTF-8 "XDG_RUNTIME_DIR=$(runtime_directory)"
        "${kept[@]}"
    )
}
unprivileged() {
    local UNPRIVILEGED
    set_unprivileged
    "${UNPRIVILEGED[@]}" "$@"
}

# The user `sandbox` may not be able to read this checkout, and must not be able to change it: as root, work on a copy,
# made and filled by that user (root must not write where somebody else can swap a directory for a link).
# Sets WORK, and COPY, which `remove_copy` removes.
prepare_copy() {
    COPY=""
    WORK="$CHECKOUT"
    # What a call that was killed outright has left. By the time of its creation here: tar gives it the checkout's mtime.
    unprivileged find "$(home_directory)" -maxdepth 1 -name '.sandbox-test-????????' -cmin +1440 -exec rm -rf {} +
    is_root || return 0
    COPY="$(unprivileged mktemp -d "$(home_directory)/.sandbox-test-XXXXXXXX")"
    tar -C "$CHECKOUT" --exclude=./.git --exclude=./build --exclude=node_modules --exclude=__pycache__ \
        --exclude='.*_cache' --exclude=./.hypothesis --exclude=./.venv -cf - . | unprivileged tar -C "$COPY" --no-same-owner -xf -
    WORK="$COPY"
}
remove_copy() {
    [ -z "${COPY:-}" ] || unprivileged rm -rf "$COPY"
}
in_work() {
    # shellcheck disable=SC2016 # expanded by the inner shell
    unprivileged sh -c 'cd "$1" && shift && exec "$@"' sh "$WORK" "$@"
}
