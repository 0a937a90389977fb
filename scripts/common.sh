# shellcheck shell=bash
# What the scripts share. Sourced, never run: it only defines names.

PROJECT=podman-sandbox-runner
SANDBOX_USER=sandbox
SANDBOX_HOME=/var/lib/sandbox

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
die() {
    printf '\nerror: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'fix:   %s\n' "$2" >&2
    exit 1
}
is_root() { [ "$(id -u)" -eq 0 ]; }
runs_as() { if is_root; then echo "$SANDBOX_USER"; else id -un; fi; }
# The account's own word, where it exists: the program follows it, too.
home_directory() {
    if is_root; then
        getent passwd "$SANDBOX_USER" | cut -d: -f6 | grep . || echo "$SANDBOX_HOME"
    else
        echo "$HOME"
    fi
}

# The virtual environment: root's is read by the user `sandbox`, who must not be able to change it.
venv_directory() {
    if is_root; then
        echo "/opt/$PROJECT"
    else
        echo "${XDG_DATA_HOME:-$HOME/.local/share}/$PROJECT/venv"
    fi
}

runtime_directory() {
    if is_root; then
        echo "/run/user/$(id -u "$SANDBOX_USER")"
    else
        echo "${XDG_RUNTIME_DIR:-/run/user/$(id -u)}"
    fi
}

# Run a command as the unprivileged user. Root's environment stays behind, apart from what says how to reach the
# network (proxies, certificates) and what steers the tests.
unprivileged() {
    if ! is_root; then
        XDG_RUNTIME_DIR="$(runtime_directory)" "$@"
        return
    fi
    local name kept=()
    for name in http_proxy https_proxy ftp_proxy all_proxy no_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY \
        SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE PIP_CERT CURL_CA_BUNDLE \
        TERM NO_COLOR CI SANDBOX_REQUIRE_PODMAN SOURCE_DATE_EPOCH; do
        [ -z "${!name:-}" ] || kept+=("$name=${!name}")
    done
    setpriv --reuid "$SANDBOX_USER" --regid "$SANDBOX_USER" --init-groups --inh-caps=-all \
        env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME="$(home_directory)" \
        USER="$SANDBOX_USER" LOGNAME="$SANDBOX_USER" LANG=C.UTF-8 XDG_RUNTIME_DIR="$(runtime_directory)" \
        "${kept[@]}" "$@"
}
