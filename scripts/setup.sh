#!/usr/bin/env bash
# Everything a fresh machine needs: `setup.sh demo` or `setup.sh test` (docs/decisions/0001).
# Safe to repeat: what is there is neither fetched nor touched, and then nothing is printed.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly UV_VERSION=0.13.9
readonly OS_RELEASE=${ISOCENTER_OS_RELEASE:-/etc/os-release}
readonly LOG=.tools/setup.log
purpose=${1:-demo}

say() { printf 'setup: %s\n' "$1" >&2; }

stop() {
    say "$1"
    exit 1
}

check_system() {
    local id version
    id=$(. "$OS_RELEASE" 2>/dev/null && printf '%s' "${ID:-}") || id=
    version=$(. "$OS_RELEASE" 2>/dev/null && printf '%s' "${VERSION_ID:-0}") || version=0
    case "$id:$purpose" in
        debian:*) [ "$version" = 0 ] || [ "${version%%.*}" -ge 12 ] && return ;;
        ubuntu:demo) [ "${version%%.*}" -ge 24 ] && return ;;
        ubuntu:test) stop "The tests need Debian 12 or 13 (Ubuntu has no Chromium package); here, 'make demo' works." ;;
    esac
    stop "Isocenter sets itself up on Debian 12 or 13 (the demo also on Ubuntu 24.04), not on '${id:-unknown} $version': use one of these, or a container of one."
}

check_folder() {
    mkdir -p .tools 2>/dev/null && [ -w . ] && [ -w .tools ] ||
        stop "The folder $PWD is not writable for $(id -un): clone Isocenter into a folder of your own."
}

one_at_a_time() {
    exec 9>.tools/setup.lock
    flock --nonblock 9 && return
    say "waiting for another set-up in this folder"
    flock 9
}

# Package names of the sections that this purpose needs, from deploy/apt-packages.txt.
wanted_packages() {
    awk -v purpose="$purpose" '/^\[/ { wanted = ($0 == "[demo]" || $0 == "[" purpose "]"); next }
                               wanted && NF && !/^#/ { print $1 }' deploy/apt-packages.txt
}

is_there() {
    # Any PostgreSQL server will do, whoever packaged it: the tests run their own cluster with it.
    [ "$1" = postgresql ] && compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && return
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]
}

missing_packages() {
    local package
    for package in $(wanted_packages); do
        is_there "$package" || echo "$package"
    done
}

# A plugin's package would be loaded by the Orthanc that works here at its next start: its owner decides.
spare_running_orthanc() {
    case " $* " in *" orthanc "*) return ;; *" orthanc-dicomweb "*) ;; *) return 0 ;; esac
    # Unless an interrupted set-up brought it.
    ! grep -qs '^# brought:.* orthanc' /usr/sbin/policy-rc.d || return 0
    if grep -qsx Orthanc /proc/[0-9]*/comm || systemctl is-enabled --quiet orthanc 2>/dev/null; then
        stop "This machine's own Orthanc lacks its DICOMweb plugin and would load it at its next start: if that is welcome, run 'apt-get install --no-install-recommends orthanc-dicomweb', then repeat."
    fi
}

install_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    spare_running_orthanc "${missing[@]}"
    local by_hand="apt-get install --no-install-recommends ${missing[*]}"
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || stop "System packages are missing and $(id -un) may not install them: as root, run '$by_hand', then repeat."
        as_root=(sudo)
        sudo -n true 2>/dev/null || [ -t 0 ] || as_root=(sudo -n)
    fi
    say "system packages: ${missing[*]} (a minute or two)"
    # The children get no lock, so that nothing they leave behind holds it.
    "${as_root[@]}" bash scripts/apt.sh "${missing[@]}" >>"$LOG" 2>&1 9>&- && return
    local said
    said=$(sed -n 's/^setup: //p' "$LOG" | tail -n 1)
    stop "${said:-The system packages could not be installed (see $LOG): check the rights and the network, or run '$by_hand' as root, then repeat.}"
}

find_uv() {
    uv --version >/dev/null 2>&1 && return
    if [ "$(.tools/uv/bin/uv --version 2>/dev/null | cut -d' ' -f2)" != "$UV_VERSION" ]; then
        say "uv $UV_VERSION"
        { python3 -m venv --clear .tools/uv && .tools/uv/bin/pip install --disable-pip-version-check "uv==$UV_VERSION"; } >>"$LOG" 2>&1 9>&- ||
            stop "uv could not be fetched from PyPI (see $LOG): check the network or pip's index setting, then repeat."
    fi
    PATH=$PATH:$PWD/.tools/uv/bin
    # A link of a folder that is gone is replaced, a file of somebody else is not.
    if [ "$(id -u)" -eq 0 ] && [ ! -e /usr/local/bin/uv ] && [ -d /usr/local/bin ]; then
        ln -sfn "$PWD/.tools/uv/bin/uv" /usr/local/bin/uv
    elif [ ! /usr/local/bin/uv -ef .tools/uv/bin/uv ] && [ ! -e .tools/uv/told ]; then
        say "to type 'uv run isocenter …' yourself, first: export PATH=\"\$PATH:$PWD/.tools/uv/bin\""
        touch .tools/uv/told
    fi
}

# Python comes from the system, packages from the lock; the certificates of the system count, as for apt.
sync_python() {
    export UV_PYTHON_DOWNLOADS=never UV_PROJECT_ENVIRONMENT=.venv UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180}
    export UV_SYSTEM_CERTS=1 UV_NATIVE_TLS=1
    [ -x .venv/bin/isocenter ] || say "Python packages of uv.lock"
    uv sync --frozen >>"$LOG" 2>&1 9>&- ||
        stop "The Python packages could not be installed (see $LOG): check the network to PyPI, then repeat."
    # uv has compiled the packages, but not what lies here: the first start would.
    .venv/bin/python -m compileall -q app >>"$LOG" 2>&1 9>&- || true
}

install_viewer() {
    local target=${ISOCENTER_OHIF_DIR:-var/ohif}
    [ -f "$target/manifest.json" ] || say "the OHIF viewer"
    .venv/bin/python scripts/ohif.py "$target" ${ISOCENTER_OHIF_TARBALL:+--tarball "$ISOCENTER_OHIF_TARBALL"} 9>&-
}

# What judges the server's answers in the tests; nothing of it is needed to run.
install_judges() {
    .venv/bin/python scripts/judge.py --install 9>&-
}

# A page of an app, which a test opens in a browser.
install_cornerstone() {
    .venv/bin/python scripts/cornerstone.py 9>&-
}

case "$purpose" in demo | test) ;; *) stop "say 'setup.sh demo' or 'setup.sh test'" ;; esac
check_system
check_folder
one_at_a_time
: >"$LOG"
install_packages
find_uv
sync_python
install_viewer
if [ "$purpose" = test ]; then
    install_judges
    install_cornerstone
fi
