//! Named roots: what is written in them stays in them, and nothing of them stays.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::child::wait_until;
use crate::engines::image_of;
use crate::images::run;
use crate::program::{Program, failure, is_mounted};
use crate::scene::{Scene, Tmpfs};
use crate::trees::{self, snapshot};

/// A scene in which roots are made. Dropped first, it takes down what a failed test has left.
struct Lab {
    scene: Scene,
    /// Where uppers are, if not in the store.
    homes: Option<PathBuf>,
}

impl Lab {
    fn new() -> Self {
        Self { scene: Scene::new(), homes: None }
    }

    /// With uppers in a directory of the test's own.
    fn with_homes(homes: &Path) -> Self {
        let lab = Self { scene: Scene::new(), homes: Some(homes.to_owned()) };
        let config = format!("[root]\nupper-dir = '{}'\n", homes.display());
        fs::write(lab.scene.program.dir().join("config.toml"), config).unwrap();
        lab
    }

    fn program(&self) -> &Program {
        &self.scene.program
    }

    /// Another daemon after one that has ended.
    fn mount_again(&mut self) {
        let dir = self.scene.mount.dir().to_owned();
        let again = self.scene.program.mount_at(&dir).unwrap();
        // Dropped, the former would take this mount for its own.
        std::mem::forget(std::mem::replace(&mut self.scene.mount, again));
    }

    fn run_dir(&self) -> PathBuf {
        self.program().dir().join("run")
    }

    fn homes(&self) -> PathBuf {
        self.homes.clone().unwrap_or_else(|| self.program().store().join("rcx-imagefs/roots"))
    }

    /// The image in the mount.
    fn image(&self) -> PathBuf {
        self.scene.mount.path(&self.scene.good)
    }

    /// Makes a root of the scene's image.
    #[track_caller]
    fn create(&self, id: &str, upper: &str) -> PathBuf {
        self.create_of(&self.scene.good, id, upper)
    }

    #[track_caller]
    fn create_of(&self, image: &str, id: &str, upper: &str) -> PathBuf {
        self.program().ok(&["root", "create", image, "--id", id, "--upper", upper]).into()
    }

    fn creating(&self, id: &str, upper: &str) -> Child {
        let arguments = ["root", "create", &self.scene.good, "--id", id, "--upper", upper];
        let mut command = self.program().command(&arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    #[track_caller]
    fn remove(&self, id: &str) {
        assert_eq!(
            self.program().json(&["root", "remove", id]),
            json!([{"id": id, "removed": true, "holders": []}])
        );
    }

    fn sweep(&self) -> Value {
        self.program().json(&["root", "sweep"])["removed"].clone()
    }

    fn state(&self, id: &str) -> Option<String> {
        let listed = self.program().json(&["root", "list"]);
        let found = listed.as_array().unwrap().iter().find(|one| one["id"] == id)?;
        Some(found["state"].as_str().unwrap().to_owned())
    }

    /// Nothing of any root is there: no mount, no mountpoint, no home, and a skeleton that nobody wrote in.
    #[track_caller]
    fn is_clean(&self) {
        let run = self.run_dir();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let ours: Vec<_> = mounts.lines().filter(|line| line.contains(&*run.to_string_lossy())).collect();
        assert!(ours.is_empty(), "still mounted: {ours:#?}");
        for dir in [self.homes(), run.join("roots"), run.join("root")].iter().filter(|dir| dir.exists()) {
            assert_eq!(names(dir), Vec::<String>::new(), "{}", dir.display());
        }
        if run.join("skeleton").exists() {
            let skeleton = trees::paths(&run.join("skeleton/layer"));
            let expected = ["", "box", "dev", "proc", "sys", "tmp"].map(PathBuf::from);
            assert_eq!(skeleton.into_iter().collect::<Vec<_>>(), expected);
        }
        assert_eq!(self.program().json(&["root", "list"]), json!([]));
    }

    /// The end of a test: everything is as it was before.
    #[track_caller]
    fn finish(self) {
        self.is_clean();
        self.scene.is_untouched();
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in fs::read_dir(self.run_dir().join("roots")).into_iter().flatten().flatten() {
            let _ = Command::new("umount").arg("--lazy").arg(name.path()).stderr(Stdio::null()).status();
        }
        // What a temporary directory's own removal cannot.
        let _ =
            Command::new("chattr").args(["-R", "-f", "-ia"]).arg(self.homes()).stderr(Stdio::null()).status();
    }
}

/// A process that is ended with its owner.
struct Running(Child);

impl Running {
    /// A process whose current directory is `dir`, in a mount namespace of its own or in everybody's.
    fn in_directory(dir: &Path) -> Self {
        Self(Command::new("sleep").arg("1000").current_dir(dir).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn end(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut names: Vec<_> = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a line of shell in a root.
#[track_caller]
fn shell(root: &Path, line: &str) -> String {
    run("chroot", &[root.to_str().unwrap(), "/bin/sh", "-c", line])
}

/// The mount of a root, as everybody sees it.
fn mount_of(root: &Path) -> String {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = mounts.lines().find(|line| line.split(' ').nth(4).map(Path::new) == Some(root));
    found.unwrap_or_else(|| panic!("{} is not mounted:\n{mounts}", root.display())).to_owned()
}

/// Numbers that look random and are the same in each run.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

#[test]
fn root_is_made_listed_and_removed_with_each_upper() {
    let lab = Lab::new();
    for (id, upper) in [("disk", "dir"), ("memory", "tmpfs:8M"), ("shared", "none")] {
        let created = lab.program().json(&["root", "create", &lab.scene.good, "--id", id, "--upper", upper]);
        let path = lab.run_dir().join("roots").join(id);
        let seconds = created["created"].as_u64().unwrap();
        assert!(seconds > 1_700_000_000, "{seconds}");
        let wanted = json!({
            "id": id, "state": "mounted", "path": path, "image": lab.scene.good, "engine": "fuse", "upper": upper,
            "created": seconds,
        });
        assert_eq!(created, wanted);
        assert_eq!(lab.program().json(&["root", "list"]), json!([wanted]));
        let table = lab.program().ok(&["root", "list"]);
        let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, [id, "mounted", upper, path.to_str().unwrap(), &lab.scene.good]);
        assert_eq!(fs::read_to_string(path.join("etc/motd")).unwrap(), "a small image\n");
        assert_eq!(fs::metadata(lab.homes().join(id)).unwrap().mode() & 0o7777, 0o700);
        lab.remove(id);
        assert!(!path.exists());
        lab.is_clean();
    }
    // Without any options: on disk, under a name of its own. Its path can be handed to what splits on `:` and `,`.
    let path = lab.program().ok(&["root", "create", &lab.scene.good]);
    assert!(is_mounted(Path::new(&path)) && !path.contains([':', ',', ' ']), "{path}");
    let id = path.rsplit('/').next().unwrap();
    assert_eq!((id.len(), lab.state(id).as_deref()), (16, Some("mounted")));
    assert_eq!(lab.program().ok(&["root", "remove", id]), "");
    lab.finish();
}

#[test]
fn root_has_the_images_attributes_and_no_set_id_or_device() {
    let lab = Lab::new();
    let image = fs::metadata(lab.image()).unwrap();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = lab.create("it", upper);
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
        for wanted in ["nosuid", "nodev", if upper == "none" { "ro" } else { "rw" }] {
            assert!(options.contains(&wanted), "{mount}");
        }
        lab.remove("it");
    }
    lab.finish();
}

#[test]
fn mount_table_tells_nothing_of_the_host() {
    let lab = Lab::new();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = lab.create("it", upper);
        let mount = mount_of(&root);
        let (_, shown) = mount.split_once(" - ").unwrap();
        assert!(shown.starts_with("overlay rcx-root-it "), "{shown}");
        let hosts = [lab.program().dir(), lab.program().store(), lab.scene.mount.dir(), &lab.homes()];
        for host in hosts.map(|path| path.to_str().unwrap()).into_iter().chain(["/tmp", "rcx-test", "sha256"])
        {
            assert!(!shown.contains(host), "{host} is in: {shown}");
        }
        // Every path in it is a number of a descriptor.
        for path in shown.split([',', '=']).filter(|part| part.starts_with('/')) {
            assert!(path.starts_with("/proc/self/fd/"), "{shown}");
        }
        lab.remove("it");
    }
    lab.finish();
}

#[test]
fn run_directory_that_sandboxes_would_split_is_refused() {
    let lab = Lab::new();
    for name in ["a:b", "a,b"] {
        let dir = lab.program().dir().join(name);
        let arguments = [lab.program().store(), Path::new("--run-dir"), &dir];
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--store").args(arguments).args(["root", "create", &lab.scene.good]);
        let error = failure(&command.output().unwrap(), &["root", "create"]);
        assert!(error.contains(dir.to_str().unwrap()) && error.contains("--run-dir"), "{error}");
        assert!(error.contains(&format!("may not contain `{}`", &name[1..2])), "{error}");
        assert!(!dir.exists(), "it is not made");
        // Nor behind a link of a harmless name.
        fs::create_dir(&dir).unwrap();
        let link = lab.program().dir().join("link");
        symlink(&dir, &link).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--store").arg(lab.program().store()).arg("--run-dir").arg(&link);
        let output = command.args(["root", "create", &lab.scene.good]).output().unwrap();
        assert!(failure(&output, &["root", "create"]).contains("may not contain"));
        assert_eq!(names(&dir), Vec::<String>::new());
        fs::remove_file(link).unwrap();
    }
    lab.finish();
}

#[test]
fn writes_land_in_the_upper_and_the_image_stays_as_it_was() {
    let lab = Lab::new();
    let before = snapshot(&lab.image());
    for upper in ["dir", "tmpfs:8M"] {
        let (root, other) = (lab.create("it", upper), lab.create("other", upper));
        let untouched = snapshot(&other);
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
        let home = lab.homes().join("it");
        if upper == "dir" {
            let upper = home.join("upper");
            assert_eq!(fs::read_to_string(upper.join("box/file")).unwrap(), "box\n");
            assert_eq!(fs::read_to_string(upper.join("settings/motd")).unwrap(), "a small image\nchanged\n");
            assert!(fs::symlink_metadata(upper.join("bin/cat")).unwrap().file_type().is_char_device());
        } else {
            assert_eq!(names(&home), ["root.json"], "what is in memory is not on disk");
        }
        assert!(snapshot(&lab.image()) == before, "the image has changed");
        assert!(snapshot(&other) == untouched, "another root has changed");
        lab.program().ok(&["root", "remove", "it", "other"]);
        lab.is_clean();
    }
    lab.program().ok(&["verify", &lab.scene.good, "--deep"]);
    lab.finish();
}

#[test]
fn root_without_an_upper_is_read_only() {
    let lab = Lab::new();
    let root = lab.create("it", "none");
    let failed = [
        fs::write(root.join("etc/motd"), ""),
        fs::write(root.join("tmp/new"), ""),
        fs::create_dir(root.join("new")),
        fs::remove_file(root.join("bin/cat")),
        fs::set_permissions(root.join("bin"), fs::Permissions::from_mode(0o700)),
        fs::rename(root.join("etc/motd"), root.join("etc/dtom")),
    ];
    for result in failed {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
    // Made writable by hand, it is not.
    let remounted = Command::new("mount").args(["-o", "remount,rw"]).arg(&root).output().unwrap();
    assert!(!remounted.status.success());
    assert!(fs::write(root.join("tmp/new"), "").is_err());
    lab.remove("it");
    lab.finish();
}

#[test]
fn upper_in_memory_is_full_at_its_size_in_bytes_and_in_files() {
    let lab = Lab::new();
    let root = lab.create("it", "tmpfs:4M");
    let written = io::copy(&mut io::repeat(7), &mut fs::File::create(root.join("box/big")).unwrap());
    assert_eq!(written.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let size = fs::metadata(root.join("box/big")).unwrap().len();
    assert!((3 << 20..=4 << 20).contains(&size), "{size}");
    fs::remove_file(root.join("box/big")).unwrap();
    let full = (0..100_000).find_map(|number| fs::File::create(root.join(format!("box/{number}"))).err());
    assert_eq!(full.unwrap().kind(), io::ErrorKind::StorageFull);
    lab.remove("it");
    lab.finish();
}

#[test]
fn size_of_an_upper_on_disk_is_refused_where_nothing_keeps_to_it() {
    let disk = Tmpfs::new("64m");
    let lab = Lab::with_homes(&disk.path().join("uppers"));
    let error = lab.program().fails(&["root", "create", &lab.scene.good, "--upper", "dir:16M"]);
    for word in ["tmpfs there does not limit", lab.homes().to_str().unwrap(), "use `tmpfs:SIZE`", "prjquota"]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    lab.is_clean();
    lab.create("it", "dir");
    lab.remove("it");
    lab.finish();
}

#[test]
fn upper_on_disk_is_full_at_its_size_where_quotas_keep_to_it() {
    let disk = Tmpfs::new("300m");
    let (image, dir) = (disk.path().join("ext4"), disk.path().join("mounted"));
    fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    run("mkfs.ext4", &["-q", "-O", "quota", "-E", "quotatype=prjquota", image.to_str().unwrap()]);
    fs::create_dir(&dir).unwrap();
    let (device, target) = (image.to_str().unwrap(), dir.to_str().unwrap());
    let quotas = Command::new("mount").args(["-o", "loop,prjquota", device, target]).output().unwrap();
    if !quotas.status.success() {
        // A kernel without them (CONFIG_QFMT_V2) mounts no filesystem that has any.
        run("mkfs.ext4", &["-q", "-F", device]);
        run("mount", &["-o", "loop", device, target]);
    }
    let mounted = Unmount(dir.clone());
    let lab = Lab::with_homes(&dir.join("uppers"));
    if !quotas.status.success() {
        let error = lab.program().fails(&["root", "create", &lab.scene.good, "--upper", "dir:8M"]);
        assert!(error.contains("ext4 there does not limit") && error.contains("tmpfs:SIZE"), "{error}");
        lab.finish();
        drop(mounted);
        return;
    }
    let (root, other) = (lab.create("it", "dir:8M"), lab.create("other", "dir:8M"));
    let written = io::copy(&mut io::repeat(7), &mut fs::File::create(root.join("box/big")).unwrap());
    assert!(matches!(written.unwrap_err().kind(), io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull));
    let size = fs::metadata(root.join("box/big")).unwrap().len();
    assert!((6 << 20..=8 << 20).contains(&size), "{size}");
    fs::write(other.join("box/file"), vec![0; 4 << 20]).unwrap();
    lab.program().ok(&["root", "remove", "it", "other"]);
    lab.finish();
    drop(mounted);
}

/// A mount that is taken away when this is dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn filesystem_that_cannot_hold_an_upper_is_refused_by_name() {
    let disk = Tmpfs::new("16m");
    let at = |name: &str| disk.path().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(at(name)).unwrap();
    }
    let option = |name: &str| format!("{name}dir={}", at(name).display());
    let options = ["lower", "upper", "work"].map(option).join(",");
    run("mount", &["-t", "overlay", "-o", &options, "overlay", at("merged").to_str().unwrap()]);
    let mounted = Unmount(at("merged"));
    let lab = Lab::with_homes(&at("merged").join("uppers"));
    let error = lab.program().fails(&["root", "create", &lab.scene.good]);
    for word in
        ["overlay cannot be the upper layer", "upper-dir", "tmpfs:SIZE", lab.homes().to_str().unwrap()]
    {
        assert!(error.contains(word), "{word}: {error}");
    }
    lab.is_clean();
    // What is not written there can be made.
    for upper in ["tmpfs:1M", "none"] {
        lab.create("it", upper);
        lab.remove("it");
    }
    lab.finish();
    drop(mounted);
}

#[test]
fn full_disk_leaves_nothing_of_a_root() {
    let disk = Tmpfs::new("1m");
    let homes = disk.path().join("uppers");
    let lab = Lab::with_homes(&homes);
    lab.create("it", "dir");
    lab.remove("it");
    let filled = io::copy(&mut io::repeat(7), &mut fs::File::create(disk.path().join("big")).unwrap());
    assert_eq!(filled.unwrap_err().kind(), io::ErrorKind::StorageFull);
    let error = lab.program().fails(&["root", "create", &lab.scene.good]);
    assert!(error.contains(homes.to_str().unwrap()) && error.contains("No space left"), "{error}");
    lab.finish();
}

/// A tar of links and files with the names that a sandbox mounts upon.
fn tar_of(entries: &[(&str, Option<&Path>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(0);
        match target {
            Some(target) => {
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, name, target).unwrap();
            }
            None => {
                header.set_size(5);
                tar.append_data(&mut header, name, &b"image"[..]).unwrap();
            }
        }
    }
    tar.into_inner().unwrap()
}

#[test]
fn image_with_links_and_files_in_the_way_leads_nowhere_else() {
    let lab = Lab::new();
    let canary = tempfile::Builder::new().prefix("rcx-canary").tempdir().unwrap();
    fs::write(canary.path().join("passwd"), "of the host").unwrap();
    let before = snapshot(canary.path());
    let up = Path::new("../../../../../../../../../../").join(canary.path().strip_prefix("/").unwrap());
    let places = ["box", "dev", "proc", "sys", "tmp"];
    let link = |target| -> Vec<_> { places.iter().chain(&["etc"]).map(|name| (*name, target)).collect() };
    let images = [link(Some(canary.path())), link(Some(&up)), link(Some(Path::new("tmp"))), link(None)];
    for (number, entries) in images.iter().enumerate() {
        let image = image_of(lab.program(), &[tar_of(entries)]);
        let shown = snapshot(&lab.scene.mount.path(&image));
        for upper in ["dir", "tmpfs:1M", "none"] {
            let root = lab.create_of(&image, "it", upper);
            for name in places {
                let path = root.join(name);
                assert!(fs::symlink_metadata(&path).unwrap().is_dir(), "image {number}: {name}");
                assert_eq!(names(&path), Vec::<String>::new());
                if upper != "none" && !matches!(name, "proc" | "sys") {
                    fs::write(path.join("file"), "of the root").unwrap();
                }
            }
            // Everything else is as the image says: it is for the sandbox to look at it with the root as its root.
            let etc = fs::symlink_metadata(root.join("etc")).unwrap();
            assert_eq!((etc.is_symlink(), etc.is_file()), (entries[0].1.is_some(), entries[0].1.is_none()));
            lab.remove("it");
        }
        assert_eq!(snapshot(canary.path()), before);
        assert_eq!(snapshot(&lab.scene.mount.path(&image)), shown);
        lab.program().ok(&["rm", &image]);
    }
    lab.finish();
}

/// Makes a directory in a directory, and so on, `depth` times; in the last one a file.
fn chain(top: &Path, depth: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o700)).unwrap();
        at = rustix::fs::openat(&at, "deeper", flags, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap();
}

#[test]
fn whatever_a_program_leaves_is_removed() {
    let lab = Lab::new();
    for upper in ["dir", "tmpfs:256M"] {
        let root = lab.create("it", upper);
        chain(&root.join("box"), 3000);
        for number in 0..20_000 {
            fs::write(root.join(format!("tmp/{number}")), "").unwrap();
        }
        let closed = root.join("box/closed/inner");
        fs::create_dir_all(&closed).unwrap();
        fs::write(closed.join("file"), "").unwrap();
        for path in [closed.join("file"), closed.clone(), root.join("box/closed")] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
        }
        for name in ["kept", "grows"] {
            fs::create_dir(root.join("box").join(name)).unwrap();
            fs::write(root.join("box").join(name).join("file"), "").unwrap();
        }
        symlink("/etc", root.join("box/link")).unwrap();
        fs::write(root.join("box/odd\n\u{fffd} name"), "").unwrap();
        // Through the overlay, as a program with the rights would, and behind it, on the disk.
        let behind = lab.homes().join("it/upper");
        let both = [Some(root.clone()), behind.exists().then_some(behind)];
        for top in both.into_iter().flatten() {
            for (attribute, name) in [("+i", "kept"), ("+a", "grows")] {
                let directory = top.join("box").join(name);
                run(
                    "chattr",
                    &[attribute, directory.join("file").to_str().unwrap(), directory.to_str().unwrap()],
                );
            }
        }
        let refused = fs::remove_file(root.join("box/kept/file")).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        lab.remove("it");
        lab.is_clean();
    }
    lab.finish();
}

#[test]
fn killed_at_any_moment_create_leaves_nothing_that_a_sweep_does_not_find() {
    let lab = Lab::new();
    let times = (0..5).map(|_| {
        let started = Instant::now();
        lab.create("it", "dir");
        let time = started.elapsed();
        lab.remove("it");
        time
    });
    // As long as one takes: kills come before and between all steps, and some after.
    let most = u64::try_from(times.min().unwrap().as_micros()).unwrap();
    let (mut mounted, mut died) = (0, 0);
    for (number, random) in numbers(20_261_124).take(90).enumerate() {
        let id = format!("making-{number}");
        let mut child = lab.creating(&id, ["dir", "tmpfs:1M", "none"][number % 3]);
        std::thread::sleep(Duration::from_micros(random % most));
        child.kill().unwrap();
        child.wait().unwrap();
        let path = lab.run_dir().join("roots").join(&id);
        if is_mounted(&path) {
            mounted += 1;
        } else {
            died += 1;
        }
    }
    assert!(died > 10, "{mounted} were made before they were killed, {died} were not");
    // A root that was mounted is one, whatever became of who made it.
    lab.sweep();
    let left = lab.program().json(&["root", "list"]);
    let left: Vec<_> =
        left.as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(left.len(), mounted, "{left:?}");
    for id in &left {
        lab.remove(id);
    }
    lab.finish();
}

#[test]
fn killed_remove_can_be_repeated() {
    let lab = Lab::new();
    for (number, random) in numbers(7).take(20).enumerate() {
        let id = format!("removing-{number}");
        let root = lab.create(&id, "dir");
        for number in 0..200 {
            fs::write(root.join(format!("tmp/{number}")), "").unwrap();
        }
        let mut child =
            lab.program().command(&["root", "remove", &id]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random % 12_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if lab.state(&id).as_deref() == Some("mounted") {
            lab.remove(&id);
        }
    }
    lab.sweep();
    lab.finish();
}

#[test]
fn live_root_is_left_alone_by_whatever_cleans() {
    let mut lab = Lab::new();
    let roots = ["dir", "tmpfs:8M", "none"].map(|upper| {
        let id = upper.split(':').next().unwrap();
        (id, lab.create(id, upper))
    });
    for (id, root) in &roots[..2] {
        fs::write(root.join("box/mine"), id).unwrap();
    }
    let are_there = |lab: &Lab| {
        for (id, root) in &roots {
            assert_eq!(lab.state(id).as_deref(), Some("mounted"));
            assert!(is_mounted(root));
        }
        for (id, root) in &roots[..2] {
            assert_eq!(fs::read_to_string(root.join("box/mine")).unwrap(), *id);
            fs::write(root.join("box/more"), "more").unwrap();
        }
    };
    assert_eq!(lab.sweep(), json!([]));
    assert_eq!(lab.program().json(&["gc"])["roots"], 0);
    assert_eq!(lab.program().json(&["gc", "--dry-run"])["roots"], 0);
    are_there(&lab);
    let error = lab.program().fails(&["root", "create", &lab.scene.good, "--id", "dir"]);
    assert!(error.contains("root dir is there already"), "{error}");
    are_there(&lab);
    // The daemon ends in good order, and another one begins, which sweeps too.
    lab.scene.mount.server().signal("TERM");
    assert!(lab.scene.mount.server().wait().success());
    are_there(&lab);
    lab.mount_again();
    are_there(&lab);
    // A new root is of the new mount. The old ones have lost their image with its daemon; they can be removed.
    let new = lab.create("new", "dir");
    assert_eq!(fs::read_to_string(new.join("etc/motd")).unwrap(), "a small image\n");
    for id in ["new", "dir", "tmpfs", "none"] {
        lab.remove(id);
    }
    lab.finish();
}

#[test]
fn death_of_the_daemon_is_told_and_its_roots_can_be_removed() {
    let mut lab = Lab::new();
    let roots = ["dir", "tmpfs:8M", "none"].map(|upper| lab.create(upper.split(':').next().unwrap(), upper));
    lab.scene.mount.server().signal("KILL");
    lab.scene.mount.server().wait();
    let dead = fs::read_dir(roots[0].join("bin")).and_then(|mut dir| dir.next().transpose());
    assert_eq!(dead.unwrap_err().kind(), io::ErrorKind::NotConnected);
    let error = lab.program().fails(&["root", "create", &lab.scene.good]);
    assert!(
        error.contains("no daemon serves the store") && error.contains("rcx-imagefs mount DIR"),
        "{error}"
    );
    assert_eq!(lab.sweep(), json!([]));
    for id in ["dir", "tmpfs", "none"] {
        assert_eq!(lab.state(id).as_deref(), Some("mounted"));
        lab.remove(id);
    }
    lab.is_clean();
    // The next daemon replaces the dead mount.
    lab.mount_again();
    lab.create("it", "dir");
    lab.remove("it");
    lab.finish();
}

#[test]
fn dead_mount_is_told_from_one_that_is_missing() {
    const CONNECTIONS: &str = "/sys/fs/fuse/connections";
    let mut lab = Lab::new();
    if names(Path::new(CONNECTIONS)).is_empty() {
        run("mount", &["-t", "fusectl", "fusectl", CONNECTIONS]);
    }
    let device = fs::metadata(lab.scene.mount.dir()).unwrap().dev();
    // The daemon is there, has the store's lock, and does not see that its connection ends.
    lab.scene.mount.server().signal("STOP");
    let abort = format!("{CONNECTIONS}/{}/abort", rustix::fs::minor(device));
    fs::write(abort, "1").unwrap();
    let error = lab.program().fails(&["root", "create", &lab.scene.good]);
    let mountpoint = lab.scene.mount.dir().to_str().unwrap();
    for word in [mountpoint, "is dead: its daemon is gone", "Transport endpoint", "rcx-imagefs mount DIR"] {
        assert!(error.contains(word), "{word}: {error}");
    }
    lab.is_clean();
    lab.scene.mount.server().signal("KILL");
    lab.scene.mount.server().wait();
    lab.mount_again();
    lab.finish();
}

#[test]
fn image_that_is_not_there_is_told() {
    let lab = Lab::new();
    let error = lab.program().fails(&["root", "create", "lab/absent:1"]);
    assert!(error.contains("lab/absent:1 is not in the store") && error.contains("pull"), "{error}");
    let digest = format!("{}@sha256:{}", lab.scene.reference("lab/good"), "0".repeat(64));
    let error = lab.program().fails(&["root", "create", &digest]);
    assert!(error.contains("is not in the store"), "{error}");
    lab.create("it", "dir");
    lab.remove("it");
    lab.finish();
}

#[test]
fn root_in_use_is_removed_by_force_only_and_swept_when_it_is_free() {
    let lab = Lab::new();
    for upper in ["dir", "tmpfs:8M", "none"] {
        let root = lab.create("used", upper);
        let user = Running::in_directory(&root.join("etc"));
        let error = lab.program().fails(&["root", "remove", "used"]);
        let named = format!("root used is in use by process {} (sleep)", user.pid());
        assert!(error.contains(&named) && error.contains("--force"), "{error}");
        assert_eq!(lab.state("used").as_deref(), Some("mounted"));

        let output = lab.program().run(&["root", "remove", "used", "--force", "--json"]);
        assert!(output.status.success());
        assert!(!is_mounted(&root) && !root.exists());
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer, json!([{"id": "used", "removed": false, "holders": []}]));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("root used is detached; its files stay until a sweep"), "{said}");
        assert_eq!(lab.state("used").as_deref(), Some("detached"));
        // Not as long as it is used, and not the name either.
        let used = |lab: &Lab| {
            assert_eq!(lab.sweep(), json!([]));
            assert_eq!(lab.program().json(&["gc"])["roots"], 0);
            let error = lab.program().fails(&["root", "create", &lab.scene.good, "--id", "used"]);
            assert!(error.contains("root used is there already"), "{error}");
        };
        if upper == "dir" {
            used(&lab);
            let process = PathBuf::from(format!("/proc/{}/cwd/../box/late", user.pid()));
            fs::write(&process, "late").unwrap();
            used(&lab);
        }
        user.end();
        wait_until("the root is swept", || {
            lab.sweep();
            lab.state("used").is_none()
        });
        lab.is_clean();
    }
    lab.finish();
}

#[test]
fn root_in_another_mount_namespace_is_told_and_outlives_its_name() {
    let lab = Lab::new();
    let root = lab.create("it", "dir");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sleep", "1000"]);
    let holder = Running(command.spawn().unwrap());
    let pid = holder.pid();
    let comm = format!("/proc/{pid}/comm");
    wait_until("it has its namespace", || fs::read_to_string(&comm).unwrap() == "sleep\n");
    // It has a copy of every mount. That alone is no use of the root, and the copy goes with the mountpoint.
    lab.remove("it");
    assert!(!root.exists());
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert!(!mounts.contains("rcx-root-it"), "{mounts}");
    holder.end();
    lab.finish();
}

#[test]
fn names_that_are_wrong_unknown_or_gone_are_told() {
    let lab = Lab::new();
    lab.create("it", "dir");
    lab.remove("it");
    for id in ["it", "unknown"] {
        let error = lab.program().fails(&["root", "remove", id]);
        assert!(error.contains(&format!("there is no root {id}")) && error.contains("root list"), "{error}");
    }
    let long = "x".repeat(65);
    for id in ["..", "a/b", "a:b", "a,b", "A", "", ".a", &long] {
        for arguments in [&["root", "remove", id][..], &["root", "create", &lab.scene.good, "--id", id]] {
            let error = lab.program().fails(arguments);
            assert!(error.contains("a name has 1 to 64 of"), "{error}");
        }
    }
    for upper in ["ram", "tmpfs", "tmpfs:0", "dir:x", "none:1"] {
        let error = lab.program().fails(&["root", "create", &lab.scene.good, "--upper", upper]);
        assert!(error.contains(&format!("upper `{upper}`")), "{error}");
    }
    // Of several, those that can be removed are.
    lab.create("one", "dir");
    lab.create("two", "none");
    let output = lab.program().run(&["root", "remove", "one", "unknown", "two", "--json"]);
    assert_eq!(output.status.code(), Some(2));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer,
        json!([{"id": "one", "removed": true, "holders": []}, {"id": "two", "removed": true, "holders": []}])
    );
    lab.finish();
}

#[test]
fn of_several_who_make_one_root_one_wins() {
    let lab = Lab::new();
    for round in 0..10 {
        let children: Vec<_> = (0..8).map(|_| lab.creating("it", "dir")).collect();
        let outputs: Vec<Output> =
            children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
        let (won, lost): (Vec<_>, Vec<_>) = outputs.iter().partition(|output| output.status.success());
        assert_eq!(won.len(), 1, "round {round}: {outputs:#?}");
        for output in lost {
            let error = failure(output, &["root", "create"]);
            assert!(error.contains("root it is there already"), "{error}");
        }
        fs::write(lab.run_dir().join("roots/it/box/file"), "").unwrap();
        lab.remove("it");
        lab.is_clean();
    }
    lab.finish();
}

#[test]
fn sixteen_at_once_leave_nothing() {
    let lab = Lab::new();
    let outputs = |children: Vec<Child>| {
        for child in children {
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
    };
    for _ in 0..3 {
        let id = |number: usize| format!("many-{number}");
        let upper = |number: usize| ["dir", "tmpfs:1M", "none"][number % 3];
        outputs((0..16).map(|number| lab.creating(&id(number), upper(number))).collect());
        for number in (0..16).filter(|number| number % 3 != 2) {
            fs::write(lab.run_dir().join("roots").join(id(number)).join("box/file"), "").unwrap();
        }
        assert_eq!(lab.program().json(&["root", "list"]).as_array().unwrap().len(), 16);
        let remove = |number| {
            let id = id(number);
            // Sweeps among them find nothing to do, and disturb nobody.
            let arguments = if number < 16 { vec!["root", "remove", &id] } else { vec!["root", "sweep"] };
            let mut command = lab.program().command(&arguments);
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        };
        outputs((0..20).map(remove).collect());
        lab.is_clean();
    }
    lab.finish();
}

#[test]
fn homes_without_a_mount_are_swept_as_after_a_reboot() {
    let lab = Lab::new();
    for (id, upper) in [("cut-disk", "dir"), ("cut-memory", "tmpfs:1M"), ("cut-shared", "none")] {
        let root = lab.create(id, upper);
        if upper == "dir" {
            fs::write(root.join("box/file"), "").unwrap();
        }
        run("umount", &[root.to_str().unwrap()]);
        assert_eq!(lab.state(id).as_deref(), Some("detached"));
    }
    // What no root can be called is not ours.
    let foreign = lab.homes().join("Not Ours");
    fs::create_dir(&foreign).unwrap();
    assert_eq!(lab.program().json(&["gc", "--dry-run"])["roots"], 3);
    assert_eq!(lab.sweep(), json!(["cut-disk", "cut-memory", "cut-shared"]));
    fs::remove_dir(foreign).unwrap();
    lab.is_clean();
    // A dead one is not in the way of a new one, nor of its removal.
    let root = lab.create("after", "dir");
    run("umount", &[root.to_str().unwrap()]);
    lab.create("after", "tmpfs:1M");
    run("umount", &[root.to_str().unwrap()]);
    lab.remove("after");
    lab.finish();
}

#[test]
fn roots_of_one_name_in_two_stores_are_two() {
    let (lab, other) = (Lab::new(), Lab::new());
    let (root, others) = (lab.create("same", "dir"), other.create("same", "dir"));
    let user = Running::in_directory(&others.join("etc"));
    fs::write(root.join("box/file"), "").unwrap();
    assert_eq!(names(&others.join("box")), Vec::<String>::new());
    lab.remove("same");
    assert_eq!(other.sweep(), json!([]));
    let error = other.program().fails(&["root", "remove", "same"]);
    assert!(error.contains(&format!("in use by process {}", user.pid())), "{error}");
    user.end();
    other.remove("same");
    lab.finish();
    other.finish();
}
