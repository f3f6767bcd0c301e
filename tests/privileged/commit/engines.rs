//! The new image shows the tree that the root had.

use std::path::Path;
use std::process::Command;

use support::images::run;
use support::trees;

use super::{CommitFixture, shell};

/// All engines with the uppers that can be written to.
const ENGINES: [(&str, &str); 7] = [
    ("erofs", "dir"),
    ("erofs", "tmpfs:64m"),
    ("fuse", "dir"),
    ("fuse", "tmpfs:64m"),
    ("overlay2", "dir"),
    ("overlay2", "tmpfs:64m"),
    ("unpack", "dir"),
];
/// Files of the base image.
const FILES: usize = 30;

/// Changes of all kinds. Does not touch the image's hard links: overlayfs counts the names of the others wrongly.
const CHANGES: &str = r#"
echo more >> dir/a
setfattr -n user.note -v new dir/b
setfattr -n trusted.note -v x dir/b
rm -r gone
mkdir gone && echo other > gone/new && chmod 700 gone
mv moved renamed && echo h > renamed/h && rm renamed/below/g
mv dir/sub dir/sub2 && mv dir/sub2 dir/sub3
rm replaced && mkdir replaced && echo x > replaced/x
rm -r replaced-dir && ln -s elsewhere replaced-dir
printf ABCDEF > same-size && touch -d @500 same-size
echo linked > first && ln first second && mkdir links && ln first links/third
cp bin/busybox tool && setcap cap_net_raw+ep tool && cp bin/busybox other && chmod 4755 other
mkdir acl && setfacl -m u:1234:rwx,d:g:55:r acl && echo a > acl/f && setfacl -m u:99:r acl/f
mknod device c 4 5 && mknod block b 7 9 && mkfifo pipe
ln -s "$(printf '%0200d' 7)" long-link
mkdir "$(printf '%0200d' 1)" && echo l > "$(printf '%0200d' 1)/$(printf '%0250d' 2)"
ln "$(printf '%0200d' 1)/$(printf '%0250d' 2)" "$(printf '%0250d' 3)"
printf n > "$(printf 'not\377utf\n8')" && mkdir "$(printf '\376')" && rm "$(printf '\377\376')"
chown 4000000000:3000000000 dir/b && chown -h 5:6 sym
truncate -s 90M sparse && printf mid | dd of=sparse bs=1 seek=40000000 conv=notrunc status=none
truncate -s 5M hole && printf end >> hole
touch -d '1969-12-31 23:59:58.25 UTC' before-1970
echo t > tmp/written && rm tmp/kept && echo d > dev/file && mkdir box/b
echo h >> etc/hosts
mkdir -m 1777 empty
chmod 711 .
touch -d '2001-02-03 04:05:06.123456789 UTC' dir .
touch -d @0 box dev proc sys
"#;

#[test]
fn new_image_shows_the_tree_of_the_root_in_every_engine() {
    let fixture = CommitFixture::new();
    for (number, (engine, upper)) in ENGINES.into_iter().enumerate() {
        let old = fixture.create("lab/base:1", "old", engine, upper);
        shell(&old, CHANGES);
        let image = fixture.commit("old", &format!("lab/new{number}:1"), &[]);
        let new = fixture.create(&image, "new", engine, "dir");
        // Every root has these directories, with attributes of their own.
        shell(&old, "chmod 1777 tmp && chmod 755 dev box && touch -d @0 tmp box dev");
        trees::assert_equal_but_directory_links(&new, &old, FILES);
        // A root of the new image does not differ from it.
        assert_eq!(fixture.program.ok(&["diff", "new"]), "", "{engine} {upper}");
        fixture.remove("new");
        fixture.remove("old");
    }
    assert!(fixture.program.ok(&["verify", "--deep"]).ends_with(" 0 problems"));
}

#[test]
fn same_changes_give_the_same_layer_in_every_engine_and_the_same_image_twice() {
    let fixture = CommitFixture::new();
    let mut images = Vec::new();
    for (engine, upper) in ENGINES {
        let root = fixture.create("lab/base:1", "it", engine, upper);
        shell(&root, CHANGES);
        for name in ["lab/first", "lab/second"] {
            let mut command = fixture.program.command(&["root", "commit", "it", name]);
            let output = command.env("SOURCE_DATE_EPOCH", "1000").output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let printed = String::from_utf8(output.stdout).unwrap();
            images.push(printed.trim().rsplit_once('@').unwrap().1.to_owned());
        }
        fixture.remove("it");
    }
    images.dedup();
    assert_eq!(images.len(), 1, "{images:?}");
    let (_, config) = fixture.documents(&format!("@{}", images[0]));
    assert_eq!(config["created"], "1970-01-01T00:16:40Z");
    let layer = fixture.top_layer(&format!("@{}", images[0]));
    let header = std::fs::read(fixture.program.blob(&layer)).unwrap();
    assert_eq!(header[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0], "a gzip header without a name and a time");
}

#[test]
fn umoci_and_buildah_unpack_the_tree_that_the_mount_shows() {
    let fixture = CommitFixture::new();
    let root = fixture.create("lab/base:1", "it", "erofs", "dir");
    shell(&root, CHANGES);
    let image = fixture.commit("it", "lab/new:1", &[]);
    let mounted = fixture.mount.path(&image);
    trees::assert_equal(&mounted, &fixture.umoci(&image), FILES);
    let dir = fixture.program.dir();
    for driver in ["overlay", "vfs"] {
        let container = Buildah { dir, driver };
        let root = container.mount("oci:copy:it");
        trees::assert_same_content(&mounted, Path::new(&root));
        container.remove();
    }
    fixture.remove("it");
}

/// buildah with storage of its own.
struct Buildah<'a> {
    dir: &'a Path,
    driver: &'a str,
}

impl Buildah<'_> {
    fn call(&self, arguments: &[&str]) -> String {
        let (root, state) = (self.dir.join(self.driver), self.dir.join(format!("{}-run", self.driver)));
        let (root, state) = (root.to_str().unwrap(), state.to_str().unwrap());
        let global = ["--root", root, "--runroot", state, "--storage-driver", self.driver];
        // It makes a name of the path of a layout, which must not have capital letters.
        let output =
            Command::new("buildah").current_dir(self.dir).args(global).args(arguments).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "buildah {arguments:?}: {err}");
        out.trim().to_owned()
    }

    /// Returns the root directory of a container of an image.
    fn mount(&self, image: &str) -> String {
        let policy = self.dir.join("policy.json");
        std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
        let policy = policy.to_str().unwrap();
        self.call(&["from", "--quiet", "--name", "it", "--signature-policy", policy, image]);
        self.call(&["mount", "it"])
    }

    fn remove(&self) {
        self.call(&["umount", "it"]);
        self.call(&["rm", "it"]);
        self.call(&["rmi", "--all", "--force"]);
    }
}

#[test]
fn image_of_a_root_can_be_run_and_committed_again() {
    let fixture = CommitFixture::new();
    let mut image = "lab/base:1".to_owned();
    for round in 0..3 {
        let root = fixture.create(&image, "it", "overlay2", "dir");
        let chroot = |line: &str| run("chroot", &[root.to_str().unwrap(), "/bin/sh", "-c", line]);
        assert_eq!(chroot("cat /rounds 2>/dev/null || true").lines().count(), round);
        shell(&root, &format!("echo again >> rounds; mkdir -p d; rm -f d/*; echo 1 > d/{round}"));
        image = fixture.commit("it", &format!("lab/round:{round}"), &[]);
        fixture.remove("it");
    }
    let (manifest, config) = fixture.documents(&image);
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 5);
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 5);
    let listed = Command::new("ls").arg(fixture.mount.path(&image).join("d")).output().unwrap();
    assert_eq!(String::from_utf8(listed.stdout).unwrap(), "2\n");
}
