//! The mounts of the erofs engine: one for all roots of an image, as long as it has roots.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcx_imagefs::pipeline::read_image;
use rcx_imagefs::roots::TreeMounts;
use rcx_imagefs::store::Store;
use support::child::wait_until;
use support::images::run;
use support::running::RunningProcess;
use support::trees::snapshot;

use super::RootsFixture;

/// The lines of a process's mount table. Holders have the directory of the sockets as their root, and a mount over it.
fn mount_table(process: &Path) -> Vec<String> {
    let table = fs::read_to_string(process.join("mountinfo")).unwrap_or_default();
    table.lines().map(str::to_owned).collect()
}

/// Processes that hold a mount for roots in a run directory.
fn holders(run_dir: &Path) -> Vec<String> {
    let trees = run_dir.join("trees");
    let is_holder = |process: &Path| {
        let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let is_root = |line: &String| {
            // proc_pid_mountinfo(5): the fourth field is a path in the filesystem, the fifth is the mountpoint.
            let fields: Vec<_> = line.split(' ').collect();
            fields[4] == "/" && trees.ends_with(fields[3].trim_start_matches('/')) && fields[3] != "/"
        };
        comm == "rcx-tree\n" && mount_table(process).iter().any(is_root)
    };
    let processes = fs::read_dir("/proc").unwrap().map_while(Result::ok).map(|entry| entry.path());
    let found = processes.filter(|process| is_holder(process));
    found.map(|process| process.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

fn sockets(run_dir: &Path) -> Vec<String> {
    super::names(&run_dir.join("trees"))
}

impl RootsFixture {
    fn create_erofs(&self, id: &str) -> PathBuf {
        let create = ["root", "create", &self.mounted.good, "--id", id, "--engine", "erofs"];
        self.program().ok(&create).into()
    }

    fn tree_image(&self) -> PathBuf {
        let trees = self.program().store().join("rcx-imagefs/trees");
        let names = super::names(&trees);
        assert_eq!(names.len(), 1, "{names:?}");
        trees.join(&names[0])
    }
}

#[test]
fn roots_of_an_image_share_a_mount_that_no_other_process_has() {
    let fixture = RootsFixture::new();
    let roots: Vec<_> = ["a", "b"].into_iter().map(|id| fixture.create_erofs(id)).collect();
    let holder = holders(&fixture.run_dir());
    assert_eq!((holder.len(), sockets(&fixture.run_dir()).len()), (1, 1));
    let trees = fixture.run_dir().join("trees");
    assert_eq!(fs::metadata(&trees).unwrap().permissions().mode() & 0o777, 0o700);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(trees.to_str().unwrap()), "{table}");
    // What the process kept of the host's mounts would stay in use after the host has unmounted it: the daemon's, too.
    let table = mount_table(&Path::new("/proc").join(&holder[0]));
    assert_eq!(table.len(), 2, "{table:?}");
    assert!(roots.iter().all(|root| root.join("etc/motd").is_file()));
    // Without its process, the mount stays as long as these roots, and the next root has another one.
    run("kill", &["-KILL", &holder[0]]);
    wait_until("the process has ended", || holders(&fixture.run_dir()).is_empty());
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    let after = fixture.create_erofs("c");
    assert_eq!(holders(&fixture.run_dir()).len(), 1);
    for root in roots.iter().chain([&after]) {
        assert_eq!(snapshot(root).len(), snapshot(&after).len());
    }
    for id in ["a", "b", "c"] {
        fixture.remove(id);
    }
    fixture.finish();
}

#[test]
fn mount_ends_a_while_after_the_last_root_and_with_the_run_directory() {
    let fixture = RootsFixture::new();
    let store = Store::open(fixture.program().store()).unwrap();
    let image = read_image(&store, &store.refs().unwrap().images[0].digest).unwrap();
    let layers = store.running_daemon().unwrap().unwrap().layers;
    let mount = |trees: TreeMounts| drop(trees.mount(&store, &image, layers.as_deref()).unwrap());
    mount(TreeMounts::open(&fixture.run_dir()).unwrap().with_idle(Duration::from_millis(300)));
    let first = holders(&fixture.run_dir());
    assert_eq!(first.len(), 1);
    fixture.create_erofs("it");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(holders(&fixture.run_dir()), first, "the root keeps it");
    fixture.remove("it");
    wait_until("it has ended", || holders(&fixture.run_dir()).is_empty());
    assert_eq!(sockets(&fixture.run_dir()), Vec::<String>::new());

    mount(TreeMounts::open(&fixture.run_dir()).unwrap());
    assert_eq!(holders(&fixture.run_dir()).len(), 1);
    fs::remove_dir_all(fixture.run_dir().join("trees")).unwrap();
    wait_until("it has ended", || holders(&fixture.run_dir()).is_empty());
    fixture.finish();
}

#[test]
fn roots_that_are_made_at_once_share_one_mount() {
    let fixture = RootsFixture::new();
    fs::remove_file(fixture.tree_image()).unwrap();
    let start = |number: u32| {
        let (image, id) = (&fixture.mounted.good, format!("root-{number}"));
        let create = ["root", "create", image, "--id", &id, "--engine", "erofs"];
        RunningProcess::start(&mut fixture.program().command(&create))
    };
    let started: Vec<_> = (0..16).map(start).collect();
    for mut process in started {
        assert!(process.0.wait().unwrap().success());
    }
    assert_eq!(holders(&fixture.run_dir()).len(), 1);
    for number in 0..16 {
        fixture.remove(&format!("root-{number}"));
    }
    fixture.finish();
}

#[test]
fn damaged_or_outdated_tree_image_is_made_anew() {
    let fixture = RootsFixture::new();
    fixture.create_erofs("it");
    fixture.remove("it");
    let path = fixture.tree_image();
    let good = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let damaged =
        [good[..good.len() - 512].to_vec(), Vec::new(), flipped(9), flipped(1030), flipped(good.len() - 1)];
    for bytes in damaged {
        for holder in holders(&fixture.run_dir()) {
            run("kill", &["-KILL", &holder]);
        }
        wait_until("it has ended", || holders(&fixture.run_dir()).is_empty());
        fs::write(&path, bytes).unwrap();
        let root = fixture.create_erofs("it");
        assert!(root.join("etc/motd").is_file());
        assert_eq!(fs::read(&path).unwrap(), good);
        fixture.remove("it");
    }
    fixture.finish();
}

#[test]
fn verify_makes_a_damaged_tree_image_anew_and_gc_removes_that_of_a_removed_image() {
    let mut fixture = RootsFixture::new();
    // It would make the tree image anew, too, if it has just started.
    fixture.mounted.mount.server().signal("TERM");
    fixture.mounted.mount.server().wait();
    let path = fixture.tree_image();
    let good = fs::read(&path).unwrap();
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"damage", 2000).unwrap();
    let output = fixture.program().run(&["verify"]);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && warning.contains("tree image is damaged"), "{warning}");
    assert_eq!(fs::read(&path).unwrap(), good);
    fixture.program().ok(&["gc"]);
    assert!(path.exists());
    fixture.program().ok(&["rm", &fixture.mounted.good]);
    fixture.program().ok(&["gc"]);
    assert!(!path.exists());
}

#[test]
fn roots_of_an_image_with_plain_layers_need_no_daemon() {
    let mut fixture = RootsFixture::new();
    let good = fixture.mounted.good.clone();
    fixture.mounted.mount.server().signal("TERM");
    fixture.mounted.mount.server().wait();
    let create = |options: &[&str]| {
        let arguments = [&["root", "create", &good, "--id", "it"], options].concat();
        fixture.program().run(&arguments)
    };
    let refused = String::from_utf8_lossy(&create(&["--engine", "erofs"]).stderr).into_owned();
    assert!(refused.contains("no daemon serves it"), "{refused}");
    fixture.program().ok(&["pull", "--plain", &fixture.mounted.reference("lab/good:1")]);
    for options in [&[][..], &["--engine", "auto"], &["--engine", "erofs", "--upper", "none"]] {
        let output = create(options);
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        let root = fixture.run_dir().join("roots/it");
        assert_eq!(fs::read_to_string(root.join("etc/motd")).unwrap(), "a small image\n");
        assert_eq!(fixture.program().json(&["root", "list"])[0]["engine"], "erofs");
        assert_eq!(fixture.state("it").as_deref(), Some("mounted"));
        // A plain layer in use stays.
        fixture.program().ok(&["gc", "--plain"]);
        fixture.remove("it");
    }
    fixture.assert_clean();
}
