//! All engines show the same tree, and unpacked layers survive kills, full disks and changes by hand.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use support::child::wait_until;
use support::fixture::Fixture;
use support::images::{Images, run};
use support::program::Program;
use support::text::pull_archives;
use support::tmpfs::Tmpfs;
use support::trees;

/// A named root, removed when dropped.
struct Root<'a> {
    program: &'a Program,
    id: String,
    path: PathBuf,
}

impl<'a> Root<'a> {
    fn new(program: &'a Program, image: &str, engine: &str, upper: &str) -> Self {
        let id = format!("{engine}-{}", fs::read_dir(program.dir()).unwrap().count() + unique_number());
        let path = program.ok(&["root", "create", image, "--engine", engine, "--upper", upper, "--id", &id]);
        Self { program, id, path: path.into() }
    }
}

impl Drop for Root<'_> {
    fn drop(&mut self) {
        let _ = self.program.run(&["root", "remove", "--force", &self.id]);
    }
}

/// A number that no other root of this test run uses.
fn unique_number() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1000, std::sync::atomic::Ordering::Relaxed)
}

/// The directories of unpacked layers.
fn layers(program: &Program) -> Vec<PathBuf> {
    let dir = program.store().join("rcx-imagefs/layers");
    let mut directories: Vec<_> =
        fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    directories.sort();
    directories
}

#[track_caller]
fn assert_engines_agree(image: &str, least: usize) {
    let fixture = Fixture::new(&[image]);
    let (program, name) = (&fixture.program, fixture.pull(image));
    let mount = program.mount();
    // A read-only root shows the layers alone. A root with an upper shows what a program gets.
    for upper in ["none", "dir"] {
        let fuse = Root::new(program, &name, "fuse", upper);
        for engine in ["overlay2", "unpack"] {
            let other = Root::new(program, &name, engine, upper);
            trees::assert_equal_but_directory_links(&other.path, &fuse.path, least);
        }
    }
    mount.stop();
}

#[test]
fn three_engines_show_the_same_tree() {
    assert_engines_agree("app", 8_000);
}

#[test]
fn three_engines_show_the_same_sparse_files() {
    assert_engines_agree("sparse", 10);
}

/// Makes a tar of regular files.
fn tar_of(files: &[(String, String)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

#[test]
fn image_with_more_layers_than_overlayfs_supports_shows_the_same_tree() {
    let program = Program::new();
    let layers: Vec<Vec<u8>> = (0..510)
        .map(|number| {
            let file = |path: String| (path, number.to_string());
            let mut files =
                vec![file(format!("d{}/{number}", number % 7)), file(format!("same{}", number % 50))];
            if number > 10 {
                files.push((format!("d{}/.wh.{}", (number - 7) % 7, number - 7), String::new()));
            }
            tar_of(&files)
        })
        .collect();
    let name = pull_archives(&program, &layers);
    let mount = program.mount();
    let fuse = Root::new(&program, &name, "fuse", "none");
    let overlay2 = Root::new(&program, &name, "overlay2", "none");
    trees::assert_equal_but_directory_links(&overlay2.path, &fuse.path, 60);
    assert_eq!(fs::read_to_string(overlay2.path.join("same9")).unwrap(), "509");
    drop((fuse, overlay2));
    mount.stop();
}

#[test]
fn layers_of_a_mounted_root_survive_gc_even_if_its_record_is_unreadable_or_elsewhere() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    let root = Root::new(program, &name, "overlay2", "dir");
    program.ok(&["rm", &name]);
    let kept = layers(program);
    assert!(!kept.is_empty());
    let record = program.store().join("rcx-imagefs/roots").join(&root.id).join("root.json");
    let text = fs::read_to_string(&record).unwrap();
    let assert_kept = || {
        let output = program.run(&["gc"]);
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && log.contains(&format!("record of root {}", root.id)), "{log}");
        assert_eq!(layers(program), kept);
        assert_eq!(fs::read_to_string(root.path.join("etc/motd")).unwrap(), "a small image\n");
    };
    fs::write(&record, "{}").unwrap();
    assert_kept();
    fs::write(&record, text).unwrap();
    let config = program.dir().join("config.toml");
    fs::write(&config, format!("[root]\nupper-dir = '{}'\n", program.dir().join("new").display())).unwrap();
    assert_kept();
    fs::write(&config, "").unwrap();
    program.ok(&["root", "remove", &root.id]);
    assert!(program.json(&["gc"])["layers"].as_u64() > Some(0));
    assert!(layers(program).is_empty());
}

#[test]
fn overlay2_needs_no_daemon_and_auto_selects_an_available_engine() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    let engine_of = |root: &Root<'_>| {
        let listed = program.json(&["root", "list"]);
        let found =
            listed.as_array().unwrap().iter().find(|listed_root| listed_root["id"] == root.id.as_str());
        found.expect("the root is listed")["engine"].as_str().unwrap().to_owned()
    };
    let error = program.fails(&["root", "create", &name]);
    assert!(error.contains("no daemon") && error.contains("--engine overlay2"), "{error}");
    let root = Root::new(program, &name, "auto", "dir");
    assert_eq!(engine_of(&root), "overlay2");
    assert_eq!(fs::read_to_string(root.path.join("etc/motd")).unwrap(), "a small image\n");
    let mount = program.mount();
    let root = Root::new(program, &name, "auto", "dir");
    assert_eq!(engine_of(&root), "erofs");
    drop(root);
    mount.stop();
}

#[test]
fn writes_go_to_the_upper_and_leave_the_layers_unchanged() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    for engine in ["overlay2", "unpack"] {
        let (one, other) =
            (Root::new(program, &name, engine, "dir"), Root::new(program, &name, engine, "tmpfs:8M"));
        fs::write(one.path.join("etc/motd"), "changed").unwrap();
        fs::remove_file(one.path.join("bin/cat")).unwrap();
        fs::write(one.path.join("new"), "new").unwrap();
        assert_eq!(fs::read_to_string(other.path.join("etc/motd")).unwrap(), "a small image\n");
        assert!(other.path.join("bin/cat").symlink_metadata().is_ok() && !other.path.join("new").exists());
    }
    assert_eq!(
        program.ok(&["verify", &name, "--deep"]).lines().last().unwrap().split(": ").last(),
        Some("0 problems")
    );
}

#[test]
fn four_concurrent_unpacks_create_each_layer_once() {
    let fixture = Fixture::new(&["python"]);
    let (program, name) = (&fixture.program, fixture.pull("python"));
    let children: Vec<_> = (0..4)
        .map(|number| {
            let id = format!("concurrent-{number}");
            let mut command =
                program.command(&["root", "create", &name, "--engine", "overlay2", "--id", &id]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    for directory in layers(program) {
        assert!(directory.join("meta.json").exists(), "{}", directory.display());
    }
    program.ok(&["verify", &name, "--deep"]);
    program.ok(&["root", "remove", "concurrent-0", "concurrent-1", "concurrent-2", "concurrent-3"]);
}

#[test]
fn interrupted_unpack_is_never_used_as_a_layer() {
    let fixture = Fixture::new(&["python"]);
    let (program, name) = (&fixture.program, fixture.pull("python"));
    let create = ["root", "create", &name, "--engine", "overlay2", "--id", "it"];
    for _ in 0..3 {
        let mut child = program.command(&create).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let partial = |path: &PathBuf| path.to_string_lossy().ends_with(".partial");
        wait_until("a layer is being unpacked", || {
            let started = layers(program)
                .iter()
                .filter(|path| partial(path))
                .any(|path| path.join("tree/usr/lib").exists());
            started || child.try_wait().unwrap().is_some()
        });
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // A create may have finished before its kill.
    let _ = program.run(&["root", "remove", "it"]);
    assert_eq!(program.ok(&create), program.dir().join("run/roots/it").to_str().unwrap());
    assert!(layers(program).iter().all(|path| path.join("meta.json").exists()));
    program.ok(&["verify", &name, "--deep"]);
    program.ok(&["root", "remove", "it"]);
}

#[test]
fn full_disk_leaves_no_partial_layer() {
    let total = Images::make(&["python"]).layout().layer_bytes("python");
    let disk = Tmpfs::new(&format!("{}k", total / 1024 + 30_000));
    let fixture = Fixture::with_program(&["python"], Program::with_store(&disk.path().join("store")));
    let (program, name) = (&fixture.program, fixture.pull("python"));
    let error = program.fails(&["root", "create", &name, "--engine", "overlay2", "--id", "it"]);
    assert!(error.contains("no space, inodes or quota left"), "{error}");
    assert!(layers(program).iter().all(|path| path.join("meta.json").exists()), "{:?}", layers(program));
    disk.remount("size=600m");
    program.ok(&["root", "create", &name, "--engine", "overlay2", "--id", "it"]);
    program.ok(&["root", "remove", "it"]);
}

#[test]
fn verify_detects_a_layer_directory_changed_by_hand() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    drop(Root::new(program, &name, "overlay2", "none"));
    program.ok(&["verify"]);
    let tree = layers(program)[0].join("tree");
    let motd = tree.join("etc/motd");
    let (before, mode) = (fs::metadata(&motd).unwrap(), fs::metadata(&motd).unwrap().permissions());

    fs::set_permissions(&motd, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(tree.join("etc/added"), "").unwrap();
    let output = program.run(&["verify"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(report.contains("etc/motd: has mode 600, not 644"), "{report}");
    assert!(report.contains("etc/added: is not part of the image"), "{report}");
    fs::set_permissions(&motd, mode).unwrap();
    fs::remove_file(tree.join("etc/added")).unwrap();

    // The same length and mtime with different bytes.
    fs::write(&motd, "A small image\n").unwrap();
    let times = fs::FileTimes::new().set_modified(before.modified().unwrap());
    fs::File::options().write(true).open(&motd).unwrap().set_times(times).unwrap();
    let report = String::from_utf8_lossy(&program.run(&["verify", "--deep"]).stdout).into_owned();
    assert!(report.contains("etc/motd: bytes 0..14 differ"), "{report}");
}

#[test]
fn gc_removes_layer_directories_that_no_image_and_no_root_uses() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    let root = Root::new(program, &name, "overlay2", "dir");
    let unpacked = layers(program);
    assert_eq!(unpacked.len(), 1);
    // An administrator may have set this flag.
    run("chattr", &["+i", unpacked[0].join("tree/etc/motd").to_str().unwrap()]);
    assert_eq!(program.json(&["gc"])["layers"], 0);
    program.ok(&["rm", &name]);
    assert_eq!(program.json(&["gc"])["layers"], 0, "a root still uses the layer");
    assert_eq!(fs::read_to_string(root.path.join("etc/motd")).unwrap(), "a small image\n");
    drop(root);
    assert_eq!(program.json(&["gc", "--dry-run"])["layers"], 1);
    assert_eq!(layers(program), unpacked);
    assert_eq!(program.json(&["gc"])["layers"], 1);
    assert_eq!(layers(program), Vec::<PathBuf>::new());
}

#[test]
fn gc_with_layers_also_removes_the_layer_directories_of_kept_images_that_no_root_uses() {
    let fixture = Fixture::new(&["small"]);
    let (program, name) = (&fixture.program, fixture.pull("small"));
    let root = Root::new(program, &name, "overlay2", "dir");
    assert_eq!(program.json(&["gc", "--layers"])["layers"], 0, "a root uses the layer");
    drop(root);
    assert_eq!(program.json(&["gc"])["layers"], 0, "the image is still in the store");
    assert_eq!(program.json(&["gc", "--layers", "--dry-run"])["layers"], 1);
    assert_eq!(layers(program).len(), 1);
    assert_eq!(program.json(&["gc", "--layers"])["layers"], 1);
    assert_eq!(layers(program), Vec::<PathBuf>::new());
    let again = Root::new(program, &name, "overlay2", "none");
    assert_eq!(fs::read_to_string(again.path.join("etc/motd")).unwrap(), "a small image\n");
}
