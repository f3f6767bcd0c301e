//! The limits at the command line: `load` of hostile images with different configurations and limited memory.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Output};

use bytes::Bytes;
use rcx_imagefs::image::Digest;
use rustix::fs::SeekFrom;

use crate::bombs::{MIB, gzip, noise, zstd};
use crate::directory::{case, write_layout};
use crate::stream::{end, header, pax};
use support::blob::Blob;
use support::layout;
use support::program::{Program, failure};

/// Writes an image of one layer that `load` must refuse, with a placeholder diff ID. Returns the layer's digest.
fn write_refused_image(dir: &Path, bytes: Vec<u8>) -> String {
    let digest = Digest::of(&bytes);
    let kind = if bytes[0] == 0x1f { "gzip" } else { "zstd" };
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
    layout::write(dir, [&case(vec![Blob { digest, diff_id: digest, media_type, bytes }])]);
    digest.to_string()
}

/// Loads a layout with at most `memory` bytes of data (RLIMIT_DATA: heap, stacks and all other private writable memory).
fn load_within(program: &Program, layout: &Path, memory: u64) -> Output {
    let load = program.command(&["load", layout.to_str().unwrap(), "--name", "lab/hostile:1"]);
    let mut bounded = Command::new("prlimit");
    bounded.arg(format!("--data={memory}")).arg("--").arg(load.get_program()).args(load.get_args());
    for (key, value) in load.get_envs() {
        match value {
            Some(value) => bounded.env(key, value),
            None => bounded.env_remove(key),
        };
    }
    bounded.output().expect("could not run prlimit (util-linux)")
}

/// Checks that a refused image leaves no image, no temporary file and no partial download behind.
fn assert_no_leftovers(program: &Program) {
    assert_eq!(program.ok(&["images", "--json"]), "[]");
    for kind in ["tmp", "seekable", "indexes"] {
        let dir = program.store().join("rcx-imagefs").join(kind);
        assert_eq!(fs::read_dir(&dir).map_or(0, Iterator::count), 0, "{} is not empty", dir.display());
    }
    let partial = program.store().join("rcx-imagefs/partial");
    let bytes: u64 =
        fs::read_dir(partial).map_or(0, |all| all.map(|one| one.unwrap().metadata().unwrap().len()).sum());
    assert_eq!(bytes, 0, "a partial download was left behind");
}

#[test]
fn bombs_are_refused_in_128_mib_with_layer_limit_and_key_and_leave_nothing() {
    let program = Program::new();
    fs::write(program.dir().join("config.toml"), "[limits]\nlayer-size-mib = 32\n").unwrap();
    let layout = program.dir().join("layout");
    for blob in [gzip(400, false), gzip(400, true), zstd(400, 400), zstd(400, 1), noise(40)] {
        let digest = write_refused_image(&layout, blob);
        // zstd may need a window of 128 MiB for each layer in progress, but these frames declare smaller windows.
        let output = load_within(&program, &layout, 128 * MIB);
        let error = failure(&output, &["load"]);
        for part in [&digest, "33554432 bytes", "`layer-size-mib` in `[limits]`"] {
            assert!(error.contains(part), "`{part}` is missing in: {error}");
        }
        assert_no_leftovers(&program);
        fs::remove_dir_all(&layout).unwrap();
    }
}

#[test]
fn ratio_limit_applies_from_one_gibibyte_on_and_can_be_raised() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    let file = header(b'0', b"zeros", 1100 * MIB);
    let zeros = Bytes::from(vec![0; 1 << 20]);
    let tar = [file].into_iter().chain(std::iter::repeat_n(zeros, 1100)).chain([end()]);
    write_layout(&layout, tar);
    let load = ["load", layout.to_str().unwrap(), "--name", "lab/zeros:1"];
    let error = program.fails(&load);
    for part in ["more than 200 times the size of its blob", "`layer-ratio` in `[limits]`", "hint: "] {
        assert!(error.contains(part), "`{part}` is missing in: {error}");
    }
    assert_no_leftovers(&program);
    let config = program.dir().join("config.toml");
    fs::write(&config, "[limits]\nlayer-ratio = 1100\n").unwrap();
    program.ok(&load);
    // A layer in the store keeps its index. If the index is missing, the limits apply again.
    fs::write(&config, "[limits]\nlayer-size-mib = 16\n").unwrap();
    program.ok(&load);
    fs::remove_dir_all(program.store().join("rcx-imagefs/indexes")).unwrap();
    let error = program.fails(&load);
    assert!(error.contains("`layer-size-mib` in `[limits]`"), "{error}");
    let output = program.run(&["verify"]);
    assert_eq!(output.status.code(), Some(2));
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("`layer-size-mib` in `[limits]`"), "{stdout}");
}

/// Needs root.
#[test]
fn layer_beyond_the_limits_is_eio_in_the_mount_and_status_and_log_name_the_key() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    let file = header(b'0', b"zeros", 20 * MIB);
    write_layout(&layout, [file, vec![0; 20 << 20].into(), end()]);
    program.ok(&["load", layout.to_str().unwrap(), "--name", "lab/zeros:1"]);
    fs::write(program.dir().join("config.toml"), "[limits]\nlayer-size-mib = 16\n").unwrap();
    let indexes = program.store().join("rcx-imagefs/indexes");
    fs::remove_dir_all(&indexes).unwrap();
    let mount = program.mount();
    let image = mount.path("lab/zeros:1").join("zeros");
    let error = fs::metadata(&image).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(mount.log().contains("`layer-size-mib` in `[limits]`"), "{}", mount.log());
    assert!(program.ok(&["status"]).contains("`layer-size-mib` in `[limits]`"));
    mount.stop();
}

/// Needs root.
#[test]
fn image_of_1000_layers_is_accepted_and_one_of_1001_is_refused() {
    // `load` syncs thousands of files one by one, so the store is in memory.
    let memory = tempfile::Builder::new().prefix("rcx-test").tempdir_in("/dev/shm").unwrap();
    let program = Program::with_store(&memory.path().join("store"));
    let layers =
        |count: usize| (0..count).map(|n| Blob::of_text(&format!("f d/{n} {n}\nf last {n}"))).collect();
    let layout = program.dir().join("layout");
    layout::write(&layout, [&case(layers(1000))]);
    let load = ["load", layout.to_str().unwrap(), "--name", "lab/deep:1"];
    program.ok(&load);
    let copy = program.dir().join("copy");
    program.ok(&["unpack", "lab/deep:1", copy.to_str().unwrap()]);
    let mount = program.mount();
    for root in [copy, mount.path("lab/deep:1")] {
        assert_eq!(fs::read_to_string(root.join("last")).unwrap(), "999");
        assert_eq!(fs::read_dir(root.join("d")).unwrap().count(), 1000);
    }
    mount.stop();
    fs::remove_dir_all(&layout).unwrap();
    layout::write(&layout, [&case(layers(1001))]);
    let error = program.fails(&load);
    assert!(error.contains("1001 layers") && error.contains("1000"), "{error}");
}

/// The tar of a sparse file of 2^60 bytes, with four bytes of data at its end.
fn huge() -> impl Iterator<Item = Bytes> {
    let mut map = format!("1\n{}\n4\n", (1_u64 << 60) - 4).into_bytes();
    map.resize(512, 0);
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"1152921504606846976"),
        ("GNU.sparse.name", b"data/huge"),
    ];
    let data = [header(b'0', b"x", 516), map.into(), Bytes::from_static(b"end\n"), Bytes::from(vec![0; 508])];
    pax(&records).into_iter().chain(data).chain([end()])
}

#[test]
fn unpack_of_a_file_too_large_for_the_filesystem_names_it_and_leaves_nothing() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    write_layout(&layout, huge());
    program.ok(&["load", layout.to_str().unwrap(), "--name", "lab/huge:1"]);
    let copy = program.dir().join("copy");
    let error = program.fails(&["unpack", "lab/huge:1", copy.to_str().unwrap()]);
    assert!(error.contains("data/huge") && error.contains("File too large"), "{error}");
    let names: Vec<_> =
        fs::read_dir(program.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().contains("copy")), "{names:?}");
}

/// Needs root.
#[test]
fn sparse_file_of_2_to_the_60_bytes_takes_only_its_data_in_the_mount_and_in_a_copy() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    write_layout(&layout, huge());
    program.ok(&["load", layout.to_str().unwrap(), "--name", "lab/huge:1"]);
    let mount = program.mount();
    // tmpfs supports files of that length, unlike ext4.
    let memory = tempfile::Builder::new().prefix("rcx-test").tempdir_in("/dev/shm").unwrap();
    let copy = memory.path().join("copy");
    program.ok(&["unpack", "lab/huge:1", copy.to_str().unwrap()]);
    for file in [mount.path("lab/huge:1/data/huge"), copy.join("data/huge")] {
        let file = File::open(file).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 1 << 60);
        assert!(meta.blocks() <= 16, "{} blocks", meta.blocks());
        let data = rustix::fs::seek(&file, SeekFrom::Data(0)).unwrap();
        assert!((1 << 60) - data <= 4096, "data at {data}");
        let mut end = [1; 8];
        file.read_exact_at(&mut end, (1 << 60) - 8).unwrap();
        assert_eq!(&end, b"\0\0\0\0end\n");
    }
    mount.stop();
    let error = program.fails(&["root", "create", "lab/huge:1", "--engine", "overlay2", "--upper", "none"]);
    assert!(error.contains("data/huge") && error.contains("File too large"), "{error}");
    let layers = program.store().join("rcx-imagefs/layers");
    let remaining: Vec<_> = fs::read_dir(layers).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(remaining.iter().all(|path| !path.join("tree").exists()), "{remaining:?}");
    assert_eq!(program.ok(&["root", "list", "--json"]), "[]");
}
