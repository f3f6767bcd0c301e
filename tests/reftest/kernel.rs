//! Random images on the real kernel, compared with the model: in the mount, as overlays of layer directories, and as plain copies.
//! Needs root.

use std::fs;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use rcx_imagefs::image::Digest;
use rcx_imagefs::roots::enter_private_namespace;

use crate::fs::{packing, sound};
use support::blob::Blob;
use support::case::{Case, Expected};
use support::engine_dump::{erofs, in_mount, overlay2, unpacked};
use support::layers::{Line, parse, tar};
use support::layout;
use support::model::Model;
use support::program::Program;
use support::stored::Packing;

/// The number of images. They share one store and one daemon.
const IMAGES: usize = 100;

fn blob(lines: &[Line], packing: Packing) -> Blob {
    let tar = tar(lines);
    let bytes = packing.pack(&tar);
    let suffix = match packing {
        Packing::Tar => "",
        Packing::Gzip | Packing::Members(_) => "+gzip",
        Packing::Frames(_) | Packing::Zstd => "+zstd",
    };
    Blob {
        digest: Digest::of(&bytes),
        diff_id: Digest::of(&tar),
        media_type: format!("application/vnd.oci.image.layer.v1.tar{suffix}"),
        bytes,
    }
}

/// Compares the dump of an engine with the model, including link counts.
fn assert_shows(engine: &str, dump: &str, model: &Model, stack: &[Vec<Line>]) {
    let odd = dump.lines().find(|line| line.starts_with('?') || line.contains(" nlink="));
    assert_eq!(odd, None, "{engine} shows\n{dump}\nfor {stack:?}");
    assert_eq!(parse(dump).remove(0), model.lines(), "{engine} shows\n{dump}\nfor {stack:?}");
}

#[test]
fn engines_agree_with_the_model_on_the_real_kernel() {
    let mut runner =
        TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() });
    let images: Vec<(Vec<Vec<Line>>, Model, Packing)> = (0..IMAGES)
        .map(|_| {
            let (stack, packing) = (crate::stack(), packing()).new_tree(&mut runner).unwrap().current();
            let (stack, model) = sound(stack);
            (stack, model, packing)
        })
        .collect();
    let cases: Vec<Case> = images
        .iter()
        .enumerate()
        .map(|(number, (stack, _, packing))| Case {
            name: number.to_string(),
            rule: 0,
            description: String::new(),
            layers: stack.iter().map(|lines| blob(lines, *packing)).collect(),
            expected: Expected::Tree(String::new()),
        })
        .collect();
    let program = Program::new();
    let dir = program.dir().join("layout");
    let digests = layout::write(&dir, &cases);
    program.ok(&["load", "--name", "random", dir.to_str().unwrap()]);
    fs::remove_dir_all(&dir).unwrap();
    let served = program.mount();
    enter_private_namespace().expect("this test needs root");
    for ((stack, model, _), digest) in images.iter().zip(digests) {
        let name = format!("random@{digest}");
        assert_shows("the mount", &in_mount(&served, &name), model, stack);
        assert_shows("erofs", &erofs(&program, digest), model, stack);
        assert_shows("overlay2", &overlay2(&program, digest), model, stack);
        assert_shows("unpack", &unpacked(&program, &name), model, stack);
    }
    served.stop();
}
