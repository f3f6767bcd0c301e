//! The limits as users meet them: `load` on hostile images, with a configuration, under a limit of the kernel on memory.

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

/// Writes an image of one layer that is not to come in: its diffID does not matter. Returns the layer's digest.
fn write_blob(dir: &Path, bytes: Vec<u8>) -> String {
    let digest = Digest::of(&bytes);
    let kind = if bytes[0] == 0x1f { "gzip" } else { "zstd" };
    let media_type = format!("application/vnd.oci.image.layer.v1.tar+{kind}");
    layout::write(dir, [&case(vec![Blob { digest, diff_id: digest, media_type, bytes }])]);
    digest.to_string()
}

/// Loads a layout with so much memory for data at most (RLIMIT_DATA: heap, stacks and all other private memory).
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
    bounded.output().expect("prlimit (util-linux) is needed for this test")
}

/// Nothing of a refused image is left but what other images may use.
fn assert_nothing_is_left(program: &Program) {
    assert_eq!(program.ok(&["images", "--json"]), "[]");
    for kind in ["tmp", "seekable", "indexes"] {
        let dir = program.store().join("rcx-imagefs").join(kind);
        assert_eq!(fs::read_dir(&dir).map_or(0, Iterator::count), 0, "{} is not empty", dir.display());
    }
    let partial = program.store().join("rcx-imagefs/partial");
    let bytes: u64 =
        fs::read_dir(partial).map_or(0, |all| all.map(|one| one.unwrap().metadata().unwrap().len()).sum());
    assert_eq!(bytes, 0, "a partial download is kept");
}

#[test]
fn bombs_are_refused_by_layer_limit_and_key_in_little_memory_and_leave_nothing() {
    let program = Program::new();
    fs::write(program.dir().join("config.toml"), "[limits]\nlayer-size-mib = 32\n").unwrap();
    let layout = program.dir().join("layout");
    for blob in [gzip(400, false), gzip(400, true), zstd(400, 400), zstd(400, 1), noise(40)] {
        let digest = write_blob(&layout, blob);
        // zstd may take a window of 128 MiB for each layer at work, which these do not ask for.
        let output = load_within(&program, &layout, 128 * MIB);
        let error = failure(&output, &["load"]);
        for part in [&digest, "33554432 bytes", "`layer-size-mib` in `[limits]`"] {
            assert!(error.contains(part), "{part} is not told: {error}");
        }
        assert_nothing_is_left(&program);
        fs::remove_dir_all(&layout).unwrap();
    }
}

#[test]
fn ratio_of_the_configuration_holds_from_a_gibibyte_on_and_can_be_raised() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    let file = header(b'0', b"zeros", 1100 * MIB);
    let zeros = Bytes::from(vec![0; 1 << 20]);
    let tar = [file].into_iter().chain(std::iter::repeat_n(zeros, 1100)).chain([end()]);
    write_layout(&layout, tar);
    let load = ["load", layout.to_str().unwrap(), "--name", "lab/zeros:1"];
    let error = program.fails(&load);
    for part in ["more than 200 times the size of its blob", "`layer-ratio` in `[limits]`", "hint: "] {
        assert!(error.contains(part), "{part} is not told: {error}");
    }
    assert_nothing_is_left(&program);
    let config = program.dir().join("config.toml");
    fs::write(&config, "[limits]\nlayer-ratio = 1100\n").unwrap();
    program.ok(&load);
    // A layer that is in the store keeps its index; one that has lost it is measured again.
    fs::write(&config, "[limits]\nlayer-size-mib = 16\n").unwrap();
    program.ok(&load);
    fs::remove_dir_all(program.store().join("rcx-imagefs/indexes")).unwrap();
    let error = program.fails(&load);
    assert!(error.contains("`layer-size-mib` in `[limits]`"), "{error}");
    let output = program.run(&["verify"]);
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("`layer-size-mib` in `[limits]`"), "{told}");
}

/// Needs root.
#[test]
fn daemon_that_finds_a_layer_beyond_the_limits_shows_an_error_and_tells_the_key() {
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
fn thousand_layers_come_in_and_one_more_is_refused() {
    // Some thousand files are synced to the disk one by one: not to a real one here.
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

/// A sparse file of 2^60 bytes, four of them at its end.
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
fn sparse_file_beyond_the_filesystem_is_refused_by_name_and_leaves_nothing() {
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
fn sparse_file_of_2_to_the_60_bytes_is_as_short_as_its_data_in_the_mount_and_in_a_copy() {
    let program = Program::new();
    let layout = program.dir().join("layout");
    write_layout(&layout, huge());
    program.ok(&["load", layout.to_str().unwrap(), "--name", "lab/huge:1"]);
    let mount = program.mount();
    // Of the filesystems at hand, tmpfs has files of that length.
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
    let left: Vec<_> = fs::read_dir(layers).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| !path.join("tree").exists()), "{left:?}");
    assert_eq!(program.ok(&["root", "list", "--json"]), "[]");
}
