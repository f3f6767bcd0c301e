//! Runs each case through every engine on the real kernel, with one store and one daemon for all cases. Needs root.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use rcx_imagefs::roots::enter_private_namespace;

use support::case::{self, Case, Expected};
use support::engine_dump::{erofs, in_mount, overlay2, unpacked};
use support::layout;
use support::program::{Program, failure};

/// Loads an image that must be refused. The error must contain the parts of the case and name the layer.
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
fn every_engine_shows_the_expected_tree_of_each_case() {
    let cases = case::selected();
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
        assert_eq!(program.ok(&["images"]), listed, "a refused image changed the others");
    }
    let left = fs::read_dir(program.store().join("rcx-imagefs/tmp")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "temporary files were left behind");

    enter_private_namespace().expect("this test needs root");
    for (case, digest) in good.iter().zip(digests) {
        let Expected::Tree(expected) = &case.expected else { continue };
        let name = format!("conformance@{digest}");
        let fuse = in_mount(&served, &name);
        let shown = [
            ("fuse", fuse),
            ("erofs", erofs(&program, digest)),
            ("overlay2", overlay2(&program, digest)),
            ("unpack", unpacked(&program, &name)),
        ];
        for (engine, shown) in shown {
            if shown != *expected {
                let _ =
                    writeln!(wrong, "{} by {engine}\n  expected\n{expected}\n  found\n{shown}", case.name);
            }
        }
    }
    served.stop();
    for name in ["rcx-conformance-canary1", "rcx-conformance-canary2"] {
        assert!(!Path::new("/tmp").join(name).exists(), "a case wrote to the host");
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}
