# Makes files that package installations rarely contain: every file type, unusual names, modes, times, ids, xattrs, links, and
# sparse files. Sourced by test-images.

# Makes unusual files below the root directory $1, for umoci to write as a layer.
odd_files() {
    local root=$1 odd=$1/srv/odd n size
    mkdir -p "$odd/modes" "$odd/ids" "$odd/times" "$odd/names" "$odd/xattrs" "$odd/links" "$odd/sizes"

    mkfifo "$odd/fifo"
    mknod "$odd/char" c 1 3
    mknod "$odd/block" b 7 300
    mknod "$odd/char-large" c 259 70000

    for n in 0000 0111 0644 1644 2755 4755 6711 7777; do
        echo "mode $n" >"$odd/modes/f$n"
        chmod "$n" "$odd/modes/f$n"
        mkdir "$odd/modes/d$n"
        chmod "$n" "$odd/modes/d$n"
    done

    for n in 1:2 1000:100 65534:65534 70000:4294967293 4294967294:0; do
        echo "owner $n" >"$odd/ids/${n/:/-}"
        chown "$n" "$odd/ids/${n/:/-}"
    done
    ln -s anywhere "$odd/ids/link"
    chown -h 1000:1000 "$odd/ids/link"

    for n in 0 1 -1 -1000000000 1700000000.123456789 4294967296 8000000000.5; do
        touch -d "@$n" "$odd/times/t$n"
    done
    ln -s nowhere "$odd/times/link"
    touch -h -d @1234567890 "$odd/times/link"

    (
        cd "$odd/names"
        for n in ' ' 'with space' 'a:b,c' 'back\slash' $'new\nline' $'tab\t' $'\xff\xfe\x80' 'ünïcode' '-dash' '...' '.hidden' 'wh.plain' '*?[' '"quoted"' "$(printf 'x%.0s' {1..255})"; do
            echo "named" >"./$n"
        done
        mkdir -p "$(printf 'long-directory-name-%.0s/' {1..40})"
        echo deep >"$(printf 'long-directory-name-%.0s/' {1..40})file"
    )

    echo text >"$odd/xattrs/user"
    setfattr -n user.text -v value "$odd/xattrs/user"
    setfattr -n user.empty "$odd/xattrs/user"
    setfattr -n user.binary -v 0x00ff0a3d00 "$odd/xattrs/user"
    setfattr -n user.large -v "$(printf 'v%.0s' {1..3000})" "$odd/xattrs/user"
    setfattr -n trusted.note -v kept "$odd/xattrs/user"
    mkdir "$odd/xattrs/directory"
    setfattr -n user.on-directory -v yes "$odd/xattrs/directory"
    install -m 755 /bin/busybox "$odd/xattrs/capable"
    setcap cap_net_bind_service,cap_net_raw=ep "$odd/xattrs/capable"
    install -m 4755 /bin/busybox "$odd/setuid"
    echo acl >"$odd/xattrs/acl"
    setfacl -m u:1000:rw,g:100:r "$odd/xattrs/acl"

    echo 'linked within the layer' >"$odd/links/one"
    ln "$odd/links/one" "$odd/links/two"
    ln "$odd/links/one" "$odd/modes/three"
    ln "$root/etc/debian_version" "$odd/links/of-a-lower-layer"
    ln -s ../../etc/passwd "$odd/links/relative"
    ln -s /etc/passwd "$odd/links/absolute"
    ln -s ../../../../../../../etc/passwd "$odd/links/above"
    ln -s "$(printf 'target/%.0s' {1..300})" "$odd/links/long"
    ln -s loop "$odd/links/loop"
    ln -s real-directory "$odd/links/to-directory"
    mkdir "$odd/links/real-directory"
    ln "$odd/fifo" "$odd/links/fifo"
    ln "$odd/links/relative" "$odd/links/hard-to-symlink"

    for size in 0 1 511 512 513 65536 262143 262144 262145 1048575 1048576 1048577 3500000; do
        head -c "$size" /dev/urandom >"$odd/sizes/random-$size"
        head -c "$size" /dev/zero >"$odd/sizes/zero-$size"
    done
    truncate -s 9000000 "$odd/sparse"
    printf middle | dd of="$odd/sparse" bs=1 seek=5000001 conv=notrunc status=none

    mkdir -p "$root/srv/opaque/below" "$root/srv/emptied" "$root/srv/replaced/by-link" "$root/srv/links"
    for n in 1 2 3; do
        echo "$n" >"$root/srv/opaque/old-$n"
        echo "$n" >"$root/srv/opaque/below/old-$n"
        echo "$n" >"$root/srv/emptied/old-$n"
        echo "$n" >"$root/srv/replaced/by-link/old-$n"
        ln "$root/srv/opaque/old-$n" "$root/srv/links/kept-$n"
    done
}

# Writes a layer in the PAX format of GNU tar to the file $1: times in nanoseconds, extended sparse files, xattrs; an opaque
# directory, whiteouts, and hard links whose target exists only in a lower layer.
odd_pax_layer() {
    local out=$1 tree=$1.tree
    rm -rf "$tree"
    mkdir -p "$tree/srv/opaque/below" "$tree/srv/emptied" "$tree/srv/replaced" "$tree/srv/pax" "$tree/lib" "$tree/etc"
    touch "$tree/srv/opaque/.wh..wh..opq" "$tree/srv/emptied/.wh.old-1" "$tree/srv/emptied/.wh.old-2" "$tree/srv/emptied/.wh.old-3"
    touch "$tree/srv/emptied/.wh.never-was"
    echo new >"$tree/srv/opaque/new"
    echo 'the same name again' >"$tree/srv/opaque/below/old-2"
    echo elsewhere >"$tree/srv/pax/elsewhere"
    ln -s ../pax "$tree/srv/replaced/by-link"
    touch "$tree/etc/.wh.debian_version"

    echo precise >"$tree/srv/pax/precise"
    touch -d '2001-02-03 04:05:06.123456789Z' "$tree/srv/pax/precise"
    touch -d @-1.25 "$tree/srv/pax/before-1970"
    printf 'non UTF-8' >"$tree/srv/pax/"$'caf\xe9'
    echo text >"$tree/srv/pax/xattrs"
    setfattr -n user.from-tar -v yes "$tree/srv/pax/xattrs"
    setfattr -n user.binary -v 0x000102 "$tree/srv/pax/xattrs"
    mkdir "$tree/srv/pax/directory"
    setfattr -n user.on-directory -v 'a=b' "$tree/srv/pax/directory"
    truncate -s 20000000 "$tree/srv/pax/sparse"
    for n in 0 4096 1000000 7654321 19999990; do
        printf 'data at %s' "$n" | dd of="$tree/srv/pax/sparse" bs=1 seek="$n" conv=notrunc status=none
    done
    truncate -s 5000000 "$tree/srv/pax/all-hole"

    # Removes the target of the link from the archive again, so that it exists only in the layers below.
    mkdir -p "$tree/srv/odd/links"
    echo 'not this text' >"$tree/srv/odd/links/two"
    ln "$tree/srv/odd/links/two" "$tree/srv/pax/link-to-lower"
    local writing=(--file "$out" --directory "$tree" --format=pax --pax-option='delete=atime,delete=ctime' --sort=name
        --numeric-owner --owner=0 --group=0)
    tar --create "${writing[@]}" srv/odd/links/two srv/pax/link-to-lower
    tar --delete --file "$out" srv/odd/links/two
    rm -r "$tree/srv/odd" "$tree/srv/pax/link-to-lower"

    tar --append "${writing[@]}" --sparse --xattrs --xattrs-include='user.*' srv etc/.wh.debian_version
    # An entry below a symbolic link of a lower layer (lib -> usr/lib), without an entry for the link itself.
    echo 'through the link' >"$tree/lib/through-a-link"
    tar --append "${writing[@]}" lib/through-a-link
    rm -rf "$tree"
}

# Writes a layer in the old GNU format to the file $1: long names and link targets, large ids.
odd_gnu_layer() {
    local out=$1 tree=$1.tree long
    long=$(printf 'long-name-%.0s' {1..20})
    rm -rf "$tree"
    mkdir -p "$tree/srv/gnu/$long/$long"
    echo long >"$tree/srv/gnu/$long/$long/$long"
    ln "$tree/srv/gnu/$long/$long/$long" "$tree/srv/gnu/short"
    ln -s "$long/$long/$long" "$tree/srv/gnu/symlink"
    ln -s "$long$long$long" "$tree/srv/gnu/dangling-long"
    echo owned >"$tree/srv/gnu/large-ids"
    chown 3000000000:3000000001 "$tree/srv/gnu/large-ids"
    mknod "$tree/srv/gnu/char" c 1 5
    mkfifo "$tree/srv/gnu/fifo"
    tar --create --file "$out" --directory "$tree" --format=gnu --sort=name --numeric-owner srv/gnu
    rm -rf "$tree"
}

# Writes the same sparse files in every sparse format of tar, and plainly, as the layers $1-FORM. The tests compare the sparse
# files with the plain ones, not with umoci, which cannot read the GNU format.
odd_sparse_layers() {
    local out=$1 tree=$1.tree form n
    rm -rf "$tree"
    for form in plain gnu 0.0 0.1 1.0; do
        mkdir -p "$tree/$form"
        truncate -s 30000000 "$tree/$form/many"
        for n in $(seq 0 1000000 29000000); do
            printf 'data at %s' "$n" | dd of="$tree/$form/many" bs=1 seek="$n" conv=notrunc status=none
        done
        truncate -s 3000000 "$tree/$form/hole"
        echo 'then a hole' >"$tree/$form/head"
        truncate -s 700000 "$tree/$form/head"
        echo 'no hole' >"$tree/$form/full"
        case $form in
        plain) set -- --format=pax ;;
        gnu) set -- --format=gnu --sparse ;;
        *) set -- --format=pax --sparse --sparse-version="$form" ;;
        esac
        tar --create --file "$out-$form" --directory "$tree" --sort=name --numeric-owner "$@" "$form"
    done
    rm -rf "$tree"
}
