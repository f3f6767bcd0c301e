# Functions for all scripts: messages, prerequisites, and clean-up on exit. Sourced, never run.
#
# Each script puts an undo command on a list for everything that it starts or mounts. The exit trap runs the list in
# reverse order, so that a script that fails half way leaves no process, no mount and no directory behind.

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
undo_list=()

say() { printf '%s\n' "$*" >&2; }
step() { printf '\n==> %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# Adds a command to the list that the exit trap runs.
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

# Makes a directory that is removed on exit; its name is in $scratch.
make_scratch() {
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/rcx-imagefs.XXXXXX")
    undo "rm -rf --one-file-system '$scratch'"
}

# Makes a separate filesystem for measurements, ext4 as Debian makes it, and moves $scratch to it. On an ext4 without a journal,
# as some virtual machines have, making a file searches for an inode that was not deleted recently; that would be measured.
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

# Ends a process that was started here, first with SIGTERM, and waits for it.
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

# Waits until a command succeeds, for at most $1 seconds.
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

# Installs the Debian packages that are missing. Services that come with them are not started.
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
    *' docker-registry '* | *' nginx-light '*)
        # The packages enable servers on all interfaces for the next boot.
        if command -v systemctl >/dev/null; then systemctl disable docker-registry nginx >/dev/null 2>&1 || true; fi
        ;;
    esac
}

# Finds a cargo that is at least as new as Cargo.toml requires.
need_cargo() {
    local wanted have
    case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) export PATH="$HOME/.cargo/bin:$PATH" ;; esac
    wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$repo/Cargo.toml")
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$have" ] || [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]; then
        die "cargo $wanted or newer is required, found ${have:-none}: install rustup (https://rustup.rs), then run 'rustup toolchain install stable'"
    fi
}

# Starts a registry on a free loopback port that stores its data below $1; its address is in $registry.
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

# Serves the store of RCX_IMAGEFS_STORE at $2 with the program $1; the log is $3. Returns when the mount is ready.
start_mount() {
    local program=$1 at=$2 log=$3
    mkdir -p "$at"
    "$program" mount "$at" >"$log" 2>&1 &
    mount_pid=$!
    undo "stop_process $mount_pid; if mountpoint -q '$at'; then umount -l '$at'; fi"
    wait_until 20 mount_or_death "$at" "$mount_pid" || die "the mount is not ready after 20 s: $(tail -n 3 "$log")"
    kill -0 "$mount_pid" 2>/dev/null || die "the daemon ended: $(tail -n 3 "$log")"
}

mount_or_death() { mountpoint -q "$1" || ! kill -0 "$2" 2>/dev/null; }
