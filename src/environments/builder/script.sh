# Builds and exports one image. Runs in namespaces of its own, in the build's directory: `disk` is the image of a filesystem, and
# `mnt` the empty directory for it. $1 is the tar of the context; the other arguments are options of `buildah build`.
set -eu
context=$1
shift
# Its records of blobs would outlive the build.
cache=/var/lib/containers/cache
ip link set lo up && mkdir -p "$cache" && mount -t ext4 -o loop,noatime disk mnt && mkdir mnt/cache mnt/context mnt/tmp &&
    mount --bind mnt/cache "$cache" || exit 99
private() {
    command=$1
    shift
    buildah --root "$PWD/mnt/root" --runroot "$PWD/mnt/run" --storage-driver overlay "$command" --signature-policy "$PWD/policy.json" "$@"
}
tar -xpf "$context" -C mnt/context --no-same-owner
private build --isolation chroot --pull=never --no-cache --layers=false --timestamp 0 --identity-label=false --http-proxy=false \
    --tag built --file mnt/context/Dockerfile "$@" mnt/context
private push --quiet built oci:out:built
