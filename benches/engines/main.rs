//! Compares the engines on a small image: creating and removing a root, and reading every file in a root, warm.
//!
//! Run `cargo bench --bench engines` as root. `scripts/experiment` compares the engines on real images, and with other tools.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use criterion::Criterion;
use serde_json::json;

const ENGINES: [&str; 3] = ["fuse", "overlay2", "unpack"];
const LAYERS: usize = 6;
/// Files of 4 KiB in each layer.
const SMALL: usize = 100;
/// Files of 64 KiB in each layer.
const LARGE: usize = 10;

/// A store with the image, and a daemon that serves it.
struct Host {
    dir: tempfile::TempDir,
    daemon: Child,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_layout(&dir.path().join("layout"));
        let images = dir.path().join("images");
        fs::create_dir(&images).unwrap();
        let mut host = Self { daemon: Command::new("true").spawn().unwrap(), dir };
        host.run(&["load", host.dir.path().join("layout").to_str().unwrap(), "--name", "bench:1"]);
        let mut command = host.command(&["mount", images.to_str().unwrap()]);
        host.daemon = command.stdout(Stdio::piped()).spawn().unwrap();
        // The daemon prints a line once it serves the mount.
        let mut line = String::new();
        BufReader::new(host.daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("mounted"), "{line}");
        host
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rcx-imagefs"));
        command.arg("--store").arg(self.dir.path().join("store"));
        command.arg("--run-dir").arg(self.dir.path().join("run")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    fn create_root(&self, engine: &str) -> PathBuf {
        self.run(&["root", "create", "bench:1", "--engine", engine, "--id", engine]).into()
    }

    fn remove_root(&self, engine: &str) {
        self.run(&["root", "remove", engine]);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.daemon.id().to_string()).status();
        let _ = self.daemon.wait();
    }
}

/// Writes an OCI layout of one image.
fn write_layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = rcx_imagefs::image::Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({"digest": digest.to_string(), "size": bytes.len()})
    };
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for number in 0..LAYERS {
        let tar = layer(number);
        diff_ids.push(rcx_imagefs::image::Digest::of(&tar).to_string());
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(&tar).unwrap();
        let mut descriptor = put(&gzip.finish().unwrap());
        descriptor["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+gzip");
        layers.push(descriptor);
    }
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let mut config = put(config.to_string().as_bytes());
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": layers,
    });
    let mut manifest = put(manifest.to_string().as_bytes());
    manifest["mediaType"] = json!("application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
    fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())
        .unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn layer(number: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in 0..SMALL + LARGE {
        let size: usize = if file < SMALL { 4 << 10 } else { 64 << 10 };
        let text = format!("{number} {file} ").repeat(size / 4);
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("d{}/f{number}-{file}", file % 9), &text.as_bytes()[..size])
            .unwrap();
    }
    tar.into_inner().unwrap()
}

/// Reads every file below a directory and returns the number of bytes.
fn read_all(root: &Path) -> u64 {
    let mut open = vec![root.to_owned()];
    let mut bytes = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => open.push(entry.path()),
                kind if kind.is_file() => bytes += fs::read(entry.path()).unwrap().len() as u64,
                _ => {}
            }
        }
    }
    bytes
}

fn main() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("the engines need root privileges to mount; run this benchmark as root");
        return;
    }
    let host = Host::new();
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    for engine in ENGINES {
        // The first root unpacks the layers and opens the image.
        host.create_root(engine);
        host.remove_root(engine);
        criterion.bench_function(&format!("root create and remove, {engine}"), |bencher| {
            bencher.iter(|| {
                host.create_root(engine);
                host.remove_root(engine);
            });
        });
    }
    for engine in ENGINES {
        let root = host.create_root(engine);
        let total = read_all(&root);
        assert!(total > 1 << 20);
        criterion.bench_function(&format!("read all, warm, {engine}"), |bencher| {
            bencher.iter(|| assert_eq!(read_all(&root), total));
        });
        host.remove_root(engine);
    }
    criterion.final_summary();
}
