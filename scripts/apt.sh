#!/usr/bin/env bash
# As root: install the named Debian packages without starting or enabling the services they bring.
set -euo pipefail

readonly POLICY=/usr/sbin/policy-rc.d
readonly MARK='# written by the set-up of Isocenter, removed when it ends'
readonly SERVICES=(orthanc postgresql nginx)

say() { printf 'setup: %s\n' "$1" >&2; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null || true)" = installed ]; }

# invoke-rc.d asks this file before it starts anything; 101 forbids (policy-rc.d of Debian's init-system-helpers).
forbid_starts() {
    if [ -e "$POLICY" ] && ! grep -qxF "$MARK" "$POLICY"; then
        local answer=0
        "$POLICY" orthanc start >/dev/null 2>&1 || answer=$?
        [ "$answer" -eq 101 ] && return
        say "$POLICY of this machine lets new packages start their services: install them yourself, with 'apt-get install --no-install-recommends $*', then repeat."
        exit 1
    fi
    # The list survives an interruption, so that the next run still knows whose services to keep off.
    printf '#!/bin/sh\n%s\n# brought: %s\nexit 101\n' "$MARK" "${brought[*]}" >"$POLICY"
    chmod 755 "$POLICY"
}

# Only what was not there before: a service that somebody else installed keeps its settings.
keep_off() {
    local service
    for service in "${brought[@]}"; do
        is_installed "$service" || continue
        update-rc.d "$service" disable || true
        if command -v systemctl >/dev/null; then systemctl disable --quiet "$service" || true; fi
    done
}

clean_up() {
    keep_off
    if grep -qsxF "$MARK" "$POLICY"; then rm -f "$POLICY"; fi
}

brought=()
if grep -qsxF "$MARK" "$POLICY"; then
    read -ra brought < <(sed -n 's/^# brought: //p' "$POLICY") || true
    interrupted=yes
fi
for service in "${SERVICES[@]}"; do
    case " $* " in *" $service "*) is_installed "$service" || brought+=("$service") ;; esac
done
forbid_starts "$@"
trap clean_up EXIT
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1
[ -z "${interrupted:-}" ] || dpkg --configure --pending
apt=(apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Options::=--force-confold -o Acquire::Retries=2)
"${apt[@]}" update
"${apt[@]}" install --yes --no-install-recommends --no-remove "$@" </dev/null
