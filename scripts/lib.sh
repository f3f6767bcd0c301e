# What the scripts share: messages, prerequisites, and undoing on exit. Sourced, never run.
#
# Everything started or mounted here is put on a list that the exit trap undoes in reverse order, so a script that dies
# half way leaves no process, no mount and no directory behind.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
undo_list=()

say() { printf '%s\n' "$*" >&2; }
step() { printf '\n==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Adds a command that the exit trap runs.
undo() { undo_list+=("$*"); }

run_undo() {
    local code=$? i
    trap - EXIT INT TERM HUP
    for ((i = ${#undo_list[@]} - 1; i >= 0; i--)); do
        eval "${undo_list[i]}" || true
    done
    exit "$code"
}
trap run_undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Makes a directory that goes on exit; its name is in $scratch.
make_scratch() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/rcx-imagefs.XXXXXX")
    undo "rm -rf --one-file-system '$scratch'"
}

# Makes a filesystem of its own for what is measured, ext4 as Debian makes it, and has $scratch be in it: on an ext4 without a
# journal, as some virtual machines have, making files looks for inodes that were not just deleted, and that would be measured.
make_disk() {
    local size=$1 file=$scratch/disk.img loop
    truncate -s "$size" "$file"
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 "$file" 2>/dev/null
    loop=$(losetup --find --show --direct-io=on "$file")
    undo "losetup --detach '$loop'"
    scratch=$scratch/disk
    mkdir "$scratch"
    mount -o discard "$loop" "$scratch"
    undo "umount '$scratch' || umount --lazy '$scratch'"
}

# Ends a process started here and waits for it: by its id, politely first.
stop_process() {
    local pid=$1 deadline=$((SECONDS + 20))
    kill -TERM "$pid" 2>/dev/null || return 0
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS > deadline)); then
            kill -KILL "$pid" 2>/dev/null || true
            break
        fi
        sleep 0.05
    done
    wait "$pid" 2>/dev/null || true
}

# Waits until a command is true, for at most the given seconds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

need_root() { [ "$(id -u)" = 0 ] || die "run this as root: it mounts filesystems and makes images with devices in them"; }

is_installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# Installs the Debian packages that are missing, and nothing else. Services that come with them stay off.
need_packages() {
    local package log missing=() policy=/usr/sbin/policy-rc.d
    for package in "$@"; do
        is_installed "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    need_root
    command -v apt-get >/dev/null || die "this needs Debian's apt-get to install: ${missing[*]}"
    say "installing ${missing[*]}"
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        undo "rm -f '$policy'"
    fi
    log=$(mktemp)
    undo "rm -f '$log'"
    apt-get update -qq >"$log" 2>&1 || die "apt-get update: $(tail -n 5 "$log")"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
        die "apt-get install ${missing[*]}: $(tail -n 5 "$log")"
    case " ${missing[*]} " in
    *' docker-registry '*)
        # The package switches a registry on all interfaces on for the next boot; nobody asked for one.
        if command -v systemctl >/dev/null; then systemctl disable docker-registry >/dev/null 2>&1 || true; fi
        ;;
    esac
}

# Finds a cargo of at least the version that Cargo.toml asks for.
need_cargo() {
    local wanted have
    case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) export PATH="$HOME/.cargo/bin:$PATH" ;; esac
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$repo/Cargo.toml")
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        die "cargo $wanted or newer is needed, found ${have:-none}: install rustup (https://rustup.rs), then 'rustup toolchain install stable'"
    fi
}

# Starts a registry on a free loopback port, storing below $1; its address is in $registry.
start_registry() {
    local dir=$1 pid
    mkdir -p "$dir/data"
    cat >"$dir/config.yml" <<EOF
version: 0.1
log: { level: info }
storage:
  filesystem: { rootdirectory: $dir/data }
  delete: { enabled: true }
http: { addr: "127.0.0.1:0" }
EOF
    docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 &
    pid=$!
    undo "stop_process $pid"
    wait_until 20 grep -q 'listening on 127.0.0.1:' "$dir/log" || die "docker-registry did not start: $(tail -n 3 "$dir/log")"
    registry=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$dir/log" | head -n 1)
}

# Copies image $1 of the OCI layout $2 to the registry as $3; further arguments go to skopeo.
push_image() {
    local image=$1 layout=$2 name=$3
    shift 3
    skopeo copy --quiet --insecure-policy --dest-tls-verify=false "$@" "oci:$layout:$image" "docker://$registry/$name"
}

# Serves the store that RCX_IMAGEFS_STORE names at $2 with the program $1; the log is $3. Returns when the mount is ready.
start_mount() {
    local program=$1 at=$2 log=$3
    mkdir -p "$at"
    "$program" mount "$at" >"$log" 2>&1 &
    mount_pid=$!
    undo "stop_process $mount_pid; if mountpoint -q '$at'; then umount -l '$at'; fi"
    wait_until 20 mount_or_death "$at" "$mount_pid" || die "the mount did not come up: $(tail -n 3 "$log")"
    kill -0 "$mount_pid" 2>/dev/null || die "the mount ended: $(tail -n 3 "$log")"
}

mount_or_death() { mountpoint -q "$1" || ! kill -0 "$2" 2>/dev/null; }
