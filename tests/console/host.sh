# Makes a host of its own for the commands of a page, then runs them. Run by host.rs in new mount, network and process
# namespaces, with: a scratch directory, the directory of the programs under test, the OCI layout of the test images, and the
# range of isolate's boxes that `run` may use.
#
# The root is an overlay over that of the machine, so commands may write anywhere. The registries of the pages are on
# loopback and serve test images: over TLS on port 443, and on port 5000. Port 5443 is like 443 and requires a login.
set -eu
scratch=$1 programs=$2 layout=$3 boxes=$4
root=$scratch/root
registry_names='docker.io index.docker.io registry-1.docker.io registry.example'

mkdir "$scratch/overlay" "$scratch/store" "$scratch/registry" "$root"
mount -t tmpfs -o size=512m tmpfs "$scratch/overlay"
mkdir "$scratch/overlay/upper" "$scratch/overlay/work"
mount -t overlay -o "lowerdir=/,upperdir=$scratch/overlay/upper,workdir=$scratch/overlay/work" overlay "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
for place in run tmp root; do mount -t tmpfs tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
mkdir -p "$root$scratch" "$root/var/lib/rcx-imagefs" "$root/etc/bash_completion.d" "$root/run/lock"
mount --bind "$scratch" "$root$scratch"
# An overlay takes no upper directory on an overlay, so the store is on the disk.
mount --bind "$scratch/store" "$root/var/lib/rcx-imagefs"
# isolate refuses to clean up boxes on an overlay, whose files have other device numbers than its directories. Tests that run
# at the same time share its boxes, and so its locks.
for place in /var/local/lib/isolate /var/lib/isolate /run/isolate; do
    [ -d "$place" ] || continue
    mkdir -p "$root$place"
    mount --rbind "$place" "$root$place"
done
install -m 755 "$programs/rcx-imagefs" "$programs/rcx-imagefs-isolate" "$root/usr/local/bin/"

mkdir -p "$root/etc/rcx-imagefs"
printf "[run]\nbox-ids = '%s'\n" "$boxes" >"$root/etc/rcx-imagefs/config.toml"

busybox ip link set lo up
printf '127.0.0.1 localhost %s\n' "$registry_names" >"$root/etc/hosts"
names=$(printf ',DNS:%s' $registry_names)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=registry -days 2 \
    -addext "subjectAltName=${names#,}" -addext basicConstraints=critical,CA:FALSE \
    -keyout "$scratch/key.pem" -out "$scratch/certificate.pem" 2>/dev/null
mkdir -p "$root/etc/ssl/certs"
rm -rf "$root"/etc/ssl/certs/*
cp "$scratch/certificate.pem" "$root/etc/ssl/certs/ca-certificates.crt"

serve() {
    local port=$1 tls=$2 auth=$3
    printf 'version: 0.1\nlog: { level: warn }\nstorage: { filesystem: { rootdirectory: %s } }\nhttp: { addr: "127.0.0.1:%s"%s }\n%s\n' \
        "$scratch/registry" "$port" "$tls" "$auth" >"$scratch/registry-$port.yml"
    docker-registry serve "$scratch/registry-$port.yml" >"$scratch/registry-$port.log" 2>&1 &
}
# The password is `open sesame`.
echo 'reader:$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW' >"$scratch/htpasswd"
tls=", tls: { certificate: $scratch/certificate.pem, key: $scratch/key.pem }"
serve 443 "$tls" ''
serve 5000 '' ''
serve 5443 "$tls" "auth: { htpasswd: { realm: test, path: $scratch/htpasswd } }"
tries=0
until echo >/dev/tcp/127.0.0.1/5000 && echo >/dev/tcp/127.0.0.1/443 && echo >/dev/tcp/127.0.0.1/5443; do
    tries=$((tries + 1))
    [ "$tries" -lt 400 ] || { cat "$scratch"/registry-*.log; exit 1; }
    sleep 0.05
done 2>/dev/null
while read -r image name; do
    skopeo copy --quiet --insecure-policy --preserve-digests --dest-tls-verify=false \
        "oci:$layout:$image" "docker://127.0.0.1:5000/$name"
done <<'IMAGES'
python library/python:3.12
python lab/python:3.12
IMAGES

cd "$root"
pivot_root . mnt
exec chroot . /bin/bash --norc -c '
    umount --lazy /mnt
    cd
    scratch=$1
    exec 9<&0 </dev/null
    ls() { command ls -C --width=160 "$@"; }
    touch "$scratch/ready"
    while read -r -u 9 command; do
        . "$command" 9<&-
        echo "$?" >"$command.code"
        mv "$command.code" "$command.status"
    done' console "$scratch"
