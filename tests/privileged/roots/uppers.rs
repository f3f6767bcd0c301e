//! The properties of a root, and where its writes go.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use super::{MARKER, RootsFixture, mount_of, names, shell};
use support::images::run;
use support::program::{failure, is_mounted};
use support::tmpfs::Tmpfs;
use support::trees::{self, snapshot};

#[test]
fn root_can_be_created_listed_and_removed_with_each_upper() {
    let fixture = RootsFixture::new();
    for (id, upper) in [("disk", "dir"), ("memory", "tmpfs:8M"), ("shared", "none")] {
        let created =
            fixture.program().json(&["root", "create", &fixture.mounted.good, "--id", id, "--upper", upper]);
        let path = fixture.run_dir().join("roots").join(id);
        let seconds = created["created"].as_u64().unwrap();
        assert!(seconds > 1_700_000_000, "{seconds}");
        let expected = json!({
            "id": id, "state": "mounted", "path": path, "image": fixture.mounted.good, "engine": "erofs", "upper": upper,
            "created": seconds,
        });
        assert_eq!(created, expected);
        assert_eq!(fixture.program().json(&["root", "list"]), json!([expected]));
        let table = fixture.program().ok(&["root", "list"]);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, [id, "mounted", upper, path.to_str().unwrap(), &fixture.mounted.good]);
        assert_eq!(fs::read_to_string(path.join("etc/motd")).unwrap(), "a small image\n");
        assert_eq!(fs::metadata(fixture.homes().join(id)).unwrap().mode() & 0o7777, 0o700);
        fixture.remove(id);
        assert!(!path.exists());
        fixture.assert_clean();
    }
    // Without options: an upper on disk and a generated name. The path has no `:` and `,`, which sandboxes use as separators.
    let path = fixture.program().ok(&["root", "create", &fixture.mounted.good]);
    assert!(is_mounted(Path::new(&path)) && !path.contains([':', ',', ' ']), "{path}");
    let id = path.rsplit('/').next().unwrap();
    assert_eq!((id.len(), fixture.state(id).as_deref()), (16, Some("mounted")));
    assert_eq!(fixture.program().ok(&["root", "remove", id]), "");
    fixture.finish();
}

#[test]
fn root_keeps_the_attributes_of_the_image_and_is_nosuid_and_nodev() {
    let fixture = RootsFixture::new();
    let image = fs::metadata(fixture.image()).unwrap();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = fixture.create("it", upper);
        assert_eq!(trees::attributes(&fs::metadata(&root).unwrap()).replace("nlink 1 ", ""), {
            let nlink = fs::metadata(&root).unwrap().nlink();
            trees::attributes(&image).replace(
                &format!("nlink {} ", image.nlink()),
                &match nlink {
                    1 => String::new(),
                    other => format!("nlink {other} "),
                },
            )
        });
        for (name, mode) in [("box", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)]
        {
            let found = fs::symlink_metadata(root.join(name)).unwrap();
            assert!(found.is_dir());
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (mode, 0, 0), "{name}");
        }
        let mount = mount_of(&root);
        let options: Vec<_> = mount.split(' ').nth(5).unwrap().split(',').collect();
        for option in ["nosuid", "nodev", if upper == "none" { "ro" } else { "rw" }] {
            assert!(options.contains(&option), "{mount}");
        }
        fixture.remove("it");
    }
    fixture.finish();
}

#[test]
fn mount_table_of_a_sandbox_reveals_no_host_path() {
    let fixture = RootsFixture::new();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = fixture.create("it", upper);
        let mount = mount_of(&root);
        let (_, source) = mount.split_once(" - ").unwrap();
        assert!(source.starts_with("overlay rcx-root-it "), "{source}");
        let host_paths = [
            fixture.program().dir(),
            fixture.program().store(),
            fixture.mounted.mount.dir(),
            &fixture.homes(),
        ];
        for host_path in
            host_paths.map(|path| path.to_str().unwrap()).into_iter().chain(["/tmp", "rcx-test", "sha256"])
        {
            assert!(!source.contains(host_path), "{host_path} is in: {source}");
        }
        // Every path in the options names a file descriptor.
        for path in source.split([',', '=']).filter(|part| part.starts_with('/')) {
            assert!(path.starts_with("/proc/self/fd/"), "{source}");
        }
        fixture.remove("it");
    }
    fixture.finish();
}

#[test]
fn run_directory_with_a_colon_or_comma_is_refused() {
    let fixture = RootsFixture::new();
    for name in ["a:b", "a,b"] {
        let dir = fixture.program().dir().join(name);
        let arguments = [fixture.program().store(), Path::new("--run-dir"), &dir];
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--store").args(arguments).args(["root", "create", &fixture.mounted.good]);
        let error = failure(&command.output().unwrap(), &["root", "create"]);
        assert!(error.contains(dir.to_str().unwrap()) && error.contains("--run-dir"), "{error}");
        assert!(error.contains(&format!("may not contain `{}`", &name[1..2])), "{error}");
        assert!(!dir.exists(), "{} must not be created", dir.display());
        // A link with a harmless name to such a directory is refused too.
        fs::create_dir(&dir).unwrap();
        let link = fixture.program().dir().join("link");
        symlink(&dir, &link).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--store").arg(fixture.program().store()).arg("--run-dir").arg(&link);
        let output = command.args(["root", "create", &fixture.mounted.good]).output().unwrap();
        assert!(failure(&output, &["root", "create"]).contains("may not contain"));
        assert_eq!(names(&dir), Vec::<String>::new());
        fs::remove_file(link).unwrap();
    }
    fixture.finish();
}

#[test]
fn writes_go_to_the_upper_and_leave_the_image_unchanged() {
    let fixture = RootsFixture::new();
    let before = snapshot(&fixture.image());
    for upper in ["dir", "tmpfs:8M"] {
        let (root, other) = (fixture.create("it", upper), fixture.create("other", upper));
        let other_before = snapshot(&other);
        shell(
            &root,
            "set -e
             echo changed >> /etc/motd
             chmod 600 /etc/motd
             rm /bin/cat
             mv /bin/busybox /bin/box
             mv /etc /settings
             mkdir /etc && echo new > /etc/new
             ln /settings/motd /linked
             ln -s /settings/motd /soft
             mkfifo /tmp/fifo
             echo box > /box/file",
        );
        assert_eq!(fs::read_to_string(root.join("linked")).unwrap(), "a small image\nchanged\n");
        assert_eq!(fs::metadata(root.join("settings/motd")).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(&root.join("etc")), ["new"]);
        assert!(fs::symlink_metadata(root.join("bin/cat")).is_err() && root.join("bin/box").exists());
        assert!(!root.join("bin/busybox").exists());
        assert!(fs::symlink_metadata(root.join("tmp/fifo")).unwrap().file_type().is_fifo());
        let home = fixture.homes().join("it");
        if upper == "dir" {
            let upper = home.join("upper");
            assert_eq!(fs::read_to_string(upper.join("box/file")).unwrap(), "box\n");
            assert_eq!(fs::read_to_string(upper.join("settings/motd")).unwrap(), "a small image\nchanged\n");
            assert!(fs::symlink_metadata(upper.join("bin/cat")).unwrap().file_type().is_char_device());
        } else {
            assert_eq!(names(&home), [MARKER, "root.json"], "an upper in memory must not write to the disk");
        }
        assert!(snapshot(&fixture.image()) == before, "the image has changed");
        assert!(snapshot(&other) == other_before, "another root has changed");
        fixture.program().ok(&["root", "remove", "it", "other"]);
        fixture.assert_clean();
    }
    fixture.program().ok(&["verify", &fixture.mounted.good, "--deep"]);
    fixture.finish();
}

#[test]
fn root_without_an_upper_is_read_only() {
    let fixture = RootsFixture::new();
    let root = fixture.create("it", "none");
    let results = [
        fs::write(root.join("etc/motd"), ""),
        fs::write(root.join("tmp/new"), ""),
        fs::create_dir(root.join("new")),
        fs::remove_file(root.join("bin/cat")),
        fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o700)),
        fs::rename(root.join("etc/motd"), root.join("etc/dtom")),
    ];
    for result in results {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    // A read-write remount fails.
    let remounted = Command::new("mount").args(["-o", "remount,rw"]).arg(&root).output().unwrap();
    assert!(!remounted.status.success());
    assert!(fs::write(root.join("tmp/new"), "").is_err());
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn tmpfs_upper_enforces_its_limits_on_bytes_and_files() {
    let fixture = RootsFixture::new();
    let root = fixture.create("it", "tmpfs:4M");
    let written = io::copy(&mut io::repeat(7), &mut fs::File::create(root.join("box/big")).unwrap());
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let size = fs::metadata(root.join("box/big")).unwrap().len();
    assert!((3 << 20..=4 << 20).contains(&size), "{size}");
    fs::remove_file(root.join("box/big")).unwrap();
    let full = (0..100_000).find_map(|number| fs::File::create(root.join(format!("box/{number}"))).err());
    assert_eq!(full.unwrap().kind(), io::ErrorKind::StorageFull);
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn size_of_an_upper_on_disk_is_refused_without_project_quotas() {
    let disk = Tmpfs::new("64m");
    let fixture = RootsFixture::with_upper_dir(&disk.path().join("uppers"));
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--upper", "dir:16M"]);
    for word in
        ["tmpfs has no project quotas", fixture.homes().to_str().unwrap(), "use `tmpfs:SIZE`", "prjquota"]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    fixture.assert_clean();
    fixture.create("it", "dir");
    fixture.remove("it");
    fixture.finish();
}

#[test]
fn upper_on_disk_enforces_its_size_with_project_quotas() {
    let disk = Tmpfs::new("300m");
    let (image, dir) = (disk.path().join("ext4"), disk.path().join("mounted"));
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-O", "quota", "-E", "quotatype=prjquota", image.to_str().unwrap()]);
    fs::create_dir(&dir).unwrap();
    let (device, target) = (image.to_str().unwrap(), dir.to_str().unwrap());
    let quotas = Command::new("mount").args(["-o", "loop,prjquota", device, target]).output().unwrap();
    if !quotas.status.success() {
        // A kernel without quotas (CONFIG_QFMT_V2) cannot mount a filesystem that has them.
        run("mkfs.ext4", &["-q", "-F", device]);
        run("mount", &["-o", "loop", device, target]);
    }
    let mounted = Unmount(dir.clone());
    let fixture = RootsFixture::with_upper_dir(&dir.join("uppers"));
    if !quotas.status.success() {
        let error = fixture.program().fails(&["root", "create", &fixture.mounted.good, "--upper", "dir:8M"]);
        assert!(error.contains("ext4 has no project quotas") && error.contains("tmpfs:SIZE"), "{error}");
        fixture.finish();
        drop(mounted);
        return;
    }
    let (root, other) = (fixture.create("it", "dir:8M"), fixture.create("other", "dir:8M"));
    let written = io::copy(&mut io::repeat(7), &mut fs::File::create(root.join("box/big")).unwrap());
    assert!(matches!(written.unwrap_err().kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull));
    let size = fs::metadata(root.join("box/big")).unwrap().len();
    assert!((6 << 20..=8 << 20).contains(&size), "{size}");
    fs::write(other.join("box/file"), vec![0; 4 << 20]).unwrap();
    fixture.program().ok(&["root", "remove", "it", "other"]);
    fixture.finish();
    drop(mounted);
}

/// Unmounts a path when dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn filesystem_that_cannot_hold_an_upper_is_refused_and_named() {
    let disk = Tmpfs::new("16m");
    let at = |name: &str| disk.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    let option = |name: &str| format!("{name}dir={}", at(name).display());
    let options = ["lower", "upper", "work"].map(option).join(",");
    run("mount", &["-t", "overlay", "-o", &options, "overlay", at("merged").to_str().unwrap()]);
    let mounted = Unmount(at("merged"));
    let fixture = RootsFixture::with_upper_dir(&at("merged").join("uppers"));
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good]);
    for word in
        ["overlay cannot be the upper layer", "upper-dir", "tmpfs:SIZE", fixture.homes().to_str().unwrap()]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    fixture.assert_clean();
    // Uppers that do not use this filesystem work.
    for upper in ["tmpfs:1M", "none"] {
        fixture.create("it", upper);
        fixture.remove("it");
    }
    fixture.finish();
    drop(mounted);
}

#[test]
fn full_disk_leaves_nothing_of_a_root() {
    let disk = Tmpfs::new("1m");
    let homes = disk.path().join("uppers");
    let fixture = RootsFixture::with_upper_dir(&homes);
    fixture.create("it", "dir");
    fixture.remove("it");
    let filled = io::copy(&mut io::repeat(7), &mut fs::File::create(disk.path().join("big")).unwrap());
    assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let error = fixture.program().fails(&["root", "create", &fixture.mounted.good]);
    assert!(error.contains(homes.to_str().unwrap()) && error.contains("No space left"), "{error}");
    fixture.finish();
}
