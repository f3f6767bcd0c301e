//! Hostile images: whatever names, attributes, xattrs and sizes an image has, the kernel shows the tree of the model, and its log
//! has no error.
//!
//! Each image goes the way that roots take it: tars of layers, indexes, merge, tree image, a mount, and an overlay on top. The
//! tests that start from random images print their seed on failure. `HOSTILE_IMAGES=N` sets their number, `HOSTILE_SEED=N` the seed.

mod expected;
mod extremes;
mod fallback;
mod lines;
mod walk;

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::ProptestConfig;
use proptest::test_runner::{RngAlgorithm, TestError, TestRng, TestRunner};
use rcx_imagefs::erofs::{ErofsError, TreeImage};
use rcx_imagefs::index::{Index, Layer};
use rcx_imagefs::roots::enter_private_namespace;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use support::engine_dump::TreeMount;
use support::kernel_log::{KernelLog, fault};
use support::layers::{EntryKind, Line, Merged, merge_lines};
use support::model::Model;

use expected::ExpectedTree;
use walk::{Shown, assert_shows};

/// The number of random images in a normal run of the tests.
const IMAGES: u32 = 50;

/// Mounts layers and compares all that the kernel shows with the expected tree.
#[track_caller]
fn assert_mounted(merged: &Merged, expected: &ExpectedTree, shown: &[Shown], log: &mut KernelLog) {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<&Layer<_>> = merged.layers.iter().collect();
    let mounted = TreeMount::new(&merged.tree, &layers, dir.path());
    for shown in shown {
        match shown {
            Shown::Erofs => assert_shows(mounted.path(), expected, Shown::Erofs),
            Shown::Overlay => {
                assert_shows(OverlayMount::new(&mounted, dir.path()).path(), expected, Shown::Overlay)
            }
        }
    }
    drop(mounted);
    assert_eq!(log.faults(), Vec::<String>::new(), "the kernel's log");
}

/// An overlay whose only visible layer is an EROFS. Unmounts on drop.
struct OverlayMount(PathBuf);

impl OverlayMount {
    fn new(lower: &TreeMount, dir: &Path) -> Self {
        let (at, empty) = (dir.join("overlay"), dir.join("empty"));
        fs::create_dir(&at).unwrap();
        // overlayfs needs at least two lower directories.
        fs::create_dir(&empty).unwrap();
        let options = format!("lowerdir={}:{}", lower.path().display(), empty.display());
        let options = CString::new(options).unwrap();
        mount("test", &at, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
        Self(at)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OverlayMount {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A stack of layers without the lines that break a rule.
fn sound(mut stack: Vec<Vec<Line>>) -> (Vec<Vec<Line>>, Model) {
    loop {
        match Model::merge(&stack) {
            Ok(model) => return (stack, model),
            Err((layer, line)) => drop(stack[layer].remove(line)),
        }
    }
}

/// Asserts that EROFS cannot express the tree for the reason that the writer gives.
fn assert_refused_rightly(reason: &ErofsError, stack: &[Vec<Line>]) {
    let text = reason.to_string();
    let lines = || stack.iter().flatten();
    let longest = lines().flat_map(|line| &line.xattrs).max_by_key(|(_, value)| value.len());
    let of_line =
        |line: &Line| line.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
    let sparse = || {
        lines().filter_map(|line| {
            if let EntryKind::Sparse(size, of) = &line.kind { Some((*size, of)) } else { None }
        })
    };
    if text.contains("more than 65535") {
        assert_eq!(longest.map(|(_, value)| value.len()), Some(65_536), "{text}");
    } else if text.contains("the extended attributes of a file take") {
        assert!(lines().any(|line| of_line(line) > 200_000), "{text}");
    } else if text.contains("the content of layer") {
        let all: u128 = sparse().map(|(size, _)| u128::from(size)).sum();
        // Less the headers of the tar.
        assert!(all > (2 << 40) - (1 << 20), "{text}");
    } else if text.contains("a file without content") {
        assert!(sparse().any(|(size, segments)| size > 1 << 50 && segments.is_empty()), "{text}");
    } else {
        panic!("an unexpected reason: {text}");
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

#[test]
fn kernel_shows_random_hostile_images_as_the_model_does() {
    enter_private_namespace().expect("this test needs root");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("HOSTILE_SEED").unwrap_or(u64::from(now.subsec_nanos()));
    let cases = number("HOSTILE_IMAGES").map_or(IMAGES, |count| u32::try_from(count).unwrap());
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_time: 60_000,
        max_shrink_iters: 10_000,
        ..ProptestConfig::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let mut log = std::cell::RefCell::new(KernelLog::end());
    let refused = std::cell::Cell::new(0);
    let result = runner.run(&lines::images(), |image| {
        let (stack, model) = sound(image.lines());
        let merged = merge_lines(&stack).unwrap();
        let indexes: Vec<&Index<_>> = merged.layers.iter().map(Layer::index).collect();
        match TreeImage::plan(&merged.tree, &indexes) {
            Err(reason) => {
                refused.set(refused.get() + 1);
                assert_refused_rightly(&reason.into(), &stack);
            }
            Ok(_) => {
                let shown = [Shown::Erofs, Shown::Overlay];
                assert_mounted(&merged, &ExpectedTree::new(&model.lines()), &shown, &mut log.borrow_mut());
            }
        }
        Ok(())
    });
    println!("seed {seed}: {cases} images, {} of which EROFS cannot express", refused.get());
    match result {
        Err(TestError::Fail(reason, image)) => {
            panic!("HOSTILE_SEED={seed} HOSTILE_IMAGES={cases}: {reason}\nminimal image: {image:?}")
        }
        result => result.unwrap(),
    }
    assert!(refused.get() < cases.div_ceil(2).max(1), "{} of {cases} images prove nothing", refused.get());
    assert_eq!(log.get_mut().faults(), Vec::<String>::new());
}

#[test]
fn faults_in_the_kernel_log_are_recognized() {
    for (record, is_fault) in [
        ("3,7,99,-;erofs (device erofs): bogus dirent @ nid 44", true),
        ("4,7,99,-;overlayfs: invalid redirect (x)", true),
        ("4,7,99,-;WARNING: CPU: 1 PID: 7 at fs/erofs/data.c:1", true),
        ("1,7,99,-;BUG: kernel NULL pointer dereference\n SUBSYSTEM=x", true),
        ("6,7,99,-;erofs (device erofs): mounted with root inode @ nid 36.", false),
        ("3,7,99,-;erofs (device erofs): cannot find valid erofs superblock", false),
        ("3,7,99,-;EXT4-fs (vda): error", false),
    ] {
        assert_eq!(fault(record).is_some(), is_fault, "{record}");
    }
}
