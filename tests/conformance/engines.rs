//! Each case through every engine, on the real kernel; all cases in one store, served by one daemon. Needs root.

use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rcx_imagefs::image::{Digest, ManifestDigest};
use rcx_imagefs::overlay::{LayerDirectories, enter_private_namespace};
use rcx_imagefs::store::Store;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::case::{self, Case, Expected};
use crate::program::{Program, failure};
use crate::{disk, layout};

/// Nothing is as young as this.
const NEVER: i64 = i64::MAX;

/// The tree that overlayfs makes of the layer directories alone, without what a root has above them.
fn overlay2(program: &Program, image: Digest) -> String {
    let store = Store::open(program.store()).unwrap();
    let directories = LayerDirectories::open(&store.layers_path().unwrap()).unwrap();
    let lower = match directories.lower(&store, ManifestDigest::new(image), "conformance", &|_, _| ()) {
        Ok(lower) => lower,
        Err(error) => return format!("{error:?}"),
    };
    let (at, empty) = (program.dir().join("overlay"), program.dir().join("empty"));
    for dir in [&at, &empty] {
        fs::create_dir_all(dir).unwrap();
    }
    let mut stack: Vec<_> = lower
        .descriptors()
        .iter()
        .map(|fd| fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().join("tree"))
        .collect();
    // overlayfs takes no stack of one; an empty directory at the bottom changes nothing.
    stack.push(empty);
    let stack: Vec<&str> = stack.iter().map(|path| path.to_str().unwrap()).collect();
    let options = format!("lowerdir={},index=off,xino=off,metacopy=off", stack.join(":"));
    mount("conformance", &at, "overlay", MountFlags::RDONLY, CString::new(options).unwrap().as_c_str())
        .unwrap();
    let shown = disk::dump(&at, NEVER);
    unmount(&at, UnmountFlags::empty()).unwrap();
    shown.unwrap()
}

/// The tree as `unpack` writes it.
fn unpacked(program: &Program, reference: &str) -> String {
    let at = program.dir().join("unpacked");
    let output = program.run(&["unpack", reference, at.to_str().unwrap()]);
    if !output.status.success() {
        return String::from_utf8_lossy(&output.stderr).into_owned();
    }
    let shown = disk::dump(&at, NEVER).unwrap_or_else(|error| error.to_string());
    fs::remove_dir_all(&at).unwrap();
    shown
}

/// Loads what cannot be loaded: the error has to say what the case says, and where.
fn refused(program: &Program, case: &Case, parts: &[String], layout_dir: &Path) -> Result<(), String> {
    layout::write(layout_dir, [case]);
    let arguments = ["load", "--name", "conformance", layout_dir.to_str().unwrap()];
    let output = program.run(&arguments);
    if output.status.success() {
        return Err(format!("no error: {}", String::from_utf8_lossy(&output.stdout)));
    }
    let error = failure(&output, &arguments);
    let named = case.layers.iter().any(|layer| error.contains(&layer.digest.to_string()));
    if named && parts.iter().all(|part| error.contains(part)) { Ok(()) } else { Err(error) }
}

#[test]
fn engines_show_what_each_case_says() {
    let cases = case::all();
    let program = Program::new();
    let (good, bad): (Vec<&Case>, Vec<&Case>) =
        cases.iter().partition(|case| matches!(case.expected, Expected::Tree(_)));
    let layouts = program.dir().join("layouts");
    let digests = layout::write(&layouts.join("good"), good.iter().copied());
    program.ok(&["load", "--name", "conformance", layouts.join("good").to_str().unwrap()]);
    let served = program.mount();
    let listed = program.ok(&["images"]);
    let mut wrong = String::new();

    for case in bad {
        let Expected::Error(parts) = &case.expected else { continue };
        if let Err(error) = refused(&program, case, parts, &layouts.join(&case.name)) {
            let _ = writeln!(wrong, "{}: expected an error with {parts:?}, found\n{error}", case.name);
        }
    }
    if wrong.is_empty() {
        assert_eq!(program.ok(&["images"]), listed, "images that are refused leave the others alone");
    }
    let left = fs::read_dir(program.store().join("rcx-imagefs/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "temporary files are left");

    enter_private_namespace().expect("this test takes root");
    for (case, digest) in good.iter().zip(digests) {
        let Expected::Tree(expected) = &case.expected else { continue };
        let name = format!("conformance@{digest}");
        let fuse = disk::dump(&served.path(&name), NEVER).unwrap_or_else(|error| error.to_string());
        let shown =
            [("fuse", fuse), ("overlay2", overlay2(&program, digest)), ("unpack", unpacked(&program, &name))];
        for (engine, shown) in shown {
            if shown != *expected {
                let _ =
                    writeln!(wrong, "{} by {engine}\n  expected\n{expected}\n  found\n{shown}", case.name);
            }
        }
    }
    served.stop();
    for name in ["rcx-conformance-canary1", "rcx-conformance-canary2"] {
        assert!(!Path::new("/tmp").join(name).exists(), "a case wrote on the host");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
