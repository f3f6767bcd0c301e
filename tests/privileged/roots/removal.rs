//! Roots are removed completely, whatever they contain and whenever a command is killed.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::{RootsFixture, names, pseudo_random};
use support::images::run;
use support::program::is_mounted;
use support::text::pull_archives;
use support::trees::snapshot;

/// Makes a tar of links and files with the given names.
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
fn links_and_files_at_mount_points_never_redirect_root_creation_outside_the_root() {
    let fixture = RootsFixture::new();
    let canary = tempfile::Builder::new().prefix("rcx-canary").tempdir().unwrap();
    fs::write(canary.path().join("passwd"), "of the host").unwrap();
    let before = snapshot(canary.path());
    let up = Path::new("../../../../../../../../../../").join(canary.path().strip_prefix("/").unwrap());
    let places = ["box", "dev", "proc", "sys", "tmp"];
    let link = |target| -> Vec<_> { places.iter().chain(&["etc"]).map(|name| (*name, target)).collect() };
    let images = [link(Some(canary.path())), link(Some(&up)), link(Some(Path::new("tmp"))), link(None)];
    for (number, entries) in images.iter().enumerate() {
        let image = pull_archives(fixture.program(), &[tar_of(entries)]);
        let shown = snapshot(&fixture.mounted.mount.path(&image));
        for upper in ["dir", "tmpfs:1M", "none"] {
            let root = fixture.create_of(&image, "it", upper);
            for name in places {
                let path = root.join(name);
                assert!(fs::symlink_metadata(&path).unwrap().is_dir(), "image {number}: {name}");
                assert_eq!(names(&path), Vec::<String>::new());
                if upper != "none" && !matches!(name, "proc" | "sys") {
                    fs::write(path.join("file"), "of the root").unwrap();
                }
            }
            // Other links stay as in the image. The sandbox resolves them after it has changed its root.
            let etc = fs::symlink_metadata(root.join("etc")).unwrap();
            assert_eq!((etc.is_symlink(), etc.is_file()), (entries[0].1.is_some(), entries[0].1.is_none()));
            fixture.remove("it");
        }
        assert_eq!(snapshot(canary.path()), before);
        assert_eq!(snapshot(&fixture.mounted.mount.path(&image)), shown);
        fixture.program().ok(&["rm", &image]);
    }
    fixture.finish();
}

/// Makes a chain of `depth` nested directories with a file in the last one.
fn make_chain(top: &Path, depth: usize) {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(top, flags, Mode::empty()).unwrap();
    for _ in 0..depth {
        rustix::fs::mkdirat(&at, "deeper", Mode::from_raw_mode(0o700)).unwrap();
        at = rustix::fs::openat(&at, "deeper", flags, Mode::empty()).unwrap();
    }
    rustix::fs::openat(&at, "file", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o600)).unwrap();
}

#[test]
fn root_is_removed_whatever_a_program_leaves_in_it() {
    let fixture = RootsFixture::new();
    for upper in ["dir", "tmpfs:256M"] {
        let root = fixture.create("it", upper);
        make_chain(&root.join("box"), 3000);
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
        fs::write(root.join("box/unusual\n\u{fffd} name"), "").unwrap();
        // Once through the overlay, as a privileged program would, and once directly in the upper on disk.
        let upper_dir = fixture.homes().join("it/upper");
        let tops = [Some(root.clone()), upper_dir.exists().then_some(upper_dir)];
        for top in tops.into_iter().flatten() {
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
        fixture.remove("it");
        fixture.assert_clean();
    }
    fixture.finish();
}

#[test]
fn sweep_removes_everything_left_by_a_create_killed_at_any_moment() {
    let fixture = RootsFixture::new();
    let times = (0..5).map(|_| {
        let started = Instant::now();
        fixture.create("it", "dir");
        let time = started.elapsed();
        fixture.remove("it");
        time
    });
    // The kills fall within the duration of one create: before, between and after its steps.
    let duration = u64::try_from(times.min().unwrap().as_micros()).unwrap();
    let (mut mounted, mut unmounted) = (0, 0);
    for (number, random) in pseudo_random(20_261_124).take(90).enumerate() {
        let id = format!("killed-create-{number}");
        let mut child = fixture.start_create(&id, ["dir", "tmpfs:1M", "none"][number % 3]);
        std::thread::sleep(Duration::from_micros(random % duration));
        child.kill().unwrap();
        child.wait().unwrap();
        let path = fixture.run_dir().join("roots").join(&id);
        if is_mounted(&path) {
            mounted += 1;
        } else {
            unmounted += 1;
        }
    }
    assert!(unmounted > 10, "{mounted} roots were mounted before the kill, {unmounted} were not");
    // A mounted root stays, even though its creator was killed.
    fixture.sweep();
    let listed = fixture.program().json(&["root", "list"]);
    let ids: Vec<_> =
        listed.as_array().unwrap().iter().map(|root| root["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), mounted, "{ids:?}");
    for id in &ids {
        fixture.remove(id);
    }
    fixture.finish();
}

#[test]
fn killed_remove_can_be_repeated() {
    let fixture = RootsFixture::new();
    for (number, random) in pseudo_random(7).take(20).enumerate() {
        let id = format!("killed-remove-{number}");
        let root = fixture.create(&id, "dir");
        for number in 0..200 {
            fs::write(root.join(format!("tmp/{number}")), "").unwrap();
        }
        let mut child =
            fixture.program().command(&["root", "remove", &id]).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random % 12_000));
        child.kill().unwrap();
        child.wait().unwrap();
        if fixture.state(&id).as_deref() == Some("mounted") {
            fixture.remove(&id);
        }
    }
    fixture.sweep();
    fixture.finish();
}
