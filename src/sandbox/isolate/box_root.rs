//! The directories that isolate makes for its boxes, from isolate's own configuration.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// The configuration files of isolate's own installation and of distributions.
const CONFIGURATIONS: [&str; 2] = ["/usr/local/etc/isolate", "/etc/isolate"];
/// Largest configuration that is read, in bytes.
const CONFIGURATION_MAX: u64 = 64 << 10;
/// The directory of boxes in isolate's default configuration.
const DEFAULT_ROOT: &str = "/var/local/lib/isolate";

/// Returns the directory of the boxes that the isolate at `program` makes.
///
/// The path of the configuration is compiled into isolate. It is `etc/isolate` beside the directory of the program, or in `/etc`.
pub(in crate::sandbox) fn box_root(program: &Path) -> PathBuf {
    let beside = program.parent().and_then(Path::parent).map(|prefix| prefix.join("etc/isolate"));
    let files = beside.into_iter().chain(CONFIGURATIONS.map(PathBuf::from));
    files.filter_map(|file| read_root(&file)).next().unwrap_or_else(|| DEFAULT_ROOT.into())
}

/// Returns the directory that isolate gives to the programs of a box.
pub(in crate::sandbox) fn box_directory(root: &Path, id: u32) -> PathBuf {
    root.join(id.to_string()).join("box")
}

fn read_root(file: &Path) -> Option<PathBuf> {
    let mut text = Vec::new();
    File::open(file).ok()?.take(CONFIGURATION_MAX).read_to_end(&mut text).ok()?;
    parse_root(&text)
}

/// Returns the value of `box_root`. As in isolate, the last one counts.
fn parse_root(text: &[u8]) -> Option<PathBuf> {
    let value = |line: &[u8]| {
        let rest = line.trim_ascii().strip_prefix(b"box_root")?.trim_ascii_start().strip_prefix(b"=")?;
        Some(PathBuf::from(OsStr::from_bytes(rest.trim_ascii())))
    };
    text.split(|byte| *byte == b'\n').rev().find_map(value).filter(|root| root.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directory_of_boxes_is_read_as_isolate_does() {
        for (text, expected) in [
            ("# box_root = /a\nbox_root = /b\nlock_root = /c\n", Some("/b")),
            ("box_root=/a\n  box_root   =  /b c \n", Some("/b c")),
            ("box_roots = /a\n", None),
            ("box_root = a\n", None),
            ("", None),
        ] {
            assert_eq!(parse_root(text.as_bytes()).as_deref(), expected.map(Path::new), "{text}");
        }
    }

    #[test]
    fn configuration_beside_the_program_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/isolate"), "box_root = /srv/boxes\n").unwrap();
        let root = box_root(&dir.path().join("bin/isolate"));
        assert_eq!(box_directory(&root, 7), Path::new("/srv/boxes/7/box"));
    }
}
