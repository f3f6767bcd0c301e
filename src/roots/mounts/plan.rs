//! The mount options of a root's filesystems, as data.
//!
//! Layers are named by descriptors of this process (`/proc/self/fd/7`). The mount table shows the options of an overlay to
//! every process in it, and descriptor paths reveal nothing about the host. They need no escaping either.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use super::InodeWidth;
use super::upper::inodes_for;

/// Inodes of a tmpfs without an upper. Extended attributes count as inodes too, one for each KiB.
const TMPFS_INODES: u64 = 1024;

/// One option of a new filesystem (fsconfig(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MountOption {
    /// A key with a value.
    Value(&'static str, String),
    /// A key without a value.
    Flag(&'static str),
}

/// Plans an overlay of `lowers`, topmost first. `writable` is a directory with the subdirectories `upper` and `work`; without
/// this directory, the overlay is read-only.
pub(super) fn overlay(
    source: &str,
    lowers: &[BorrowedFd<'_>],
    writable: Option<BorrowedFd<'_>>,
    inodes: InodeWidth,
) -> Vec<MountOption> {
    let mut options = vec![MountOption::Value("source", source.to_owned())];
    options.extend(lowers.iter().map(|lower| MountOption::Value("lowerdir+", fd_path(*lower))));
    options.extend(after_lowers(writable, inodes));
    options
}

/// The same as the options of mount(2). The layers are named relative to `/proc/self/fd`.
pub(super) fn legacy_overlay(
    lowers: &[BorrowedFd<'_>],
    writable: Option<BorrowedFd<'_>>,
    inodes: InodeWidth,
) -> String {
    let lowers: Vec<_> = lowers.iter().map(|lower| lower.as_raw_fd().to_string()).collect();
    let text = |option| match option {
        MountOption::Value(key, value) => format!("{key}={value}"),
        MountOption::Flag(key) => key.to_owned(),
    };
    let others = after_lowers(writable, inodes).into_iter().map(text);
    let options: Vec<_> = std::iter::once(format!("lowerdir={}", lowers.join(":"))).chain(others).collect();
    options.join(",")
}

/// The options of an overlay that do not name its lower layers.
fn after_lowers(writable: Option<BorrowedFd<'_>>, inodes: InodeWidth) -> Vec<MountOption> {
    let xino = match inodes {
        InodeWidth::Bits64 => "on",
        InodeWidth::Bits32 => "off",
    };
    // The defaults depend on the kernel's configuration. `index` serves NFS exports and keeps hard links intact across
    // copy-up.
    // `metacopy` would make files of the upper depend on the image.
    let mut options = Vec::from([("index", "off"), ("xino", xino), ("metacopy", "off")].map(value));
    if let Some(writable) = writable {
        options.extend(upper_options(writable));
        // Allows renaming the image's directories, as on other filesystems.
        options.push(value(("redirect_dir", "on")));
        // An upper is never reused after a crash, so its content need not reach the disk.
        options.push(MountOption::Flag("volatile"));
    }
    options
}

/// Plans an overlay whose mount fails if another overlay uses the same upper.
pub(super) fn probe(lower: BorrowedFd<'_>, writable: BorrowedFd<'_>) -> Vec<MountOption> {
    let mut options = vec![
        MountOption::Value("source", "rcx-probe".to_owned()),
        MountOption::Value("lowerdir", fd_path(lower)),
    ];
    options.extend(upper_options(writable));
    options.push(value(("index", "on")));
    options
}

/// Plans the EROFS of a tree image and its devices, in the order of the image's device table.
pub(super) fn erofs(source: BorrowedFd<'_>, devices: &[BorrowedFd<'_>], directio: bool) -> Vec<MountOption> {
    let mut options = vec![MountOption::Value("source", fd_path(source))];
    options.extend(devices.iter().map(|device| MountOption::Value("device", fd_path(*device))));
    // Reads the devices past the page cache, so that pages are cached once.
    if directio {
        options.push(MountOption::Flag("directio"));
    }
    options
}

/// Plans a tmpfs for an upper of at most `limit` bytes, if there is one, and for the bytes and inodes of a skeleton.
pub(super) fn tmpfs(source: &str, limit: Option<u64>, skeleton: (u64, u64)) -> Vec<MountOption> {
    let (bytes, inodes) = skeleton;
    // A size of 0 would mean no limit; so would no inodes.
    let size = limit.unwrap_or(1).saturating_add(bytes);
    let inodes = limit.map_or(TMPFS_INODES, inodes_for).saturating_add(inodes);
    vec![
        MountOption::Value("source", source.to_owned()),
        MountOption::Value("size", size.to_string()),
        MountOption::Value("nr_inodes", inodes.to_string()),
        value(("mode", "0700")),
    ]
}

/// Plans an instance of devpts. Everybody can open `ptmx`, and a terminal belongs to who opened it.
pub(super) fn terminals(source: &str) -> Vec<MountOption> {
    // Group 5 is `tty` in all distributions.
    vec![value(("gid", "5")), value(("mode", "0620")), value(("ptmxmode", "0666"))]
        .into_iter()
        .chain([MountOption::Value("source", source.to_owned())])
        .collect()
}

fn upper_options(writable: BorrowedFd<'_>) -> [MountOption; 2] {
    let path = fd_path(writable);
    [
        MountOption::Value("upperdir", format!("{path}/upper")),
        MountOption::Value("workdir", format!("{path}/work")),
    ]
}

fn value((key, value): (&'static str, &str)) -> MountOption {
    MountOption::Value(key, value.to_owned())
}

pub(super) fn fd_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    /// The options as text, with the paths of `files` replaced by `A`, `B`, ...
    fn text(options: &[MountOption], files: &[&File]) -> Vec<String> {
        let mut names: Vec<(String, char)> =
            files.iter().zip('A'..).map(|(file, letter)| (fd_path(file.as_fd()), letter)).collect();
        // Longest first: /proc/self/fd/1 is a prefix of /proc/self/fd/10.
        names.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        let plain = |value: &str| {
            names
                .iter()
                .fold(value.to_owned(), |value, (path, letter)| value.replace(path, &letter.to_string()))
        };
        let line = |option: &MountOption| match option {
            MountOption::Value(key, value) => format!("{key}={}", plain(value)),
            MountOption::Flag(key) => (*key).to_owned(),
        };
        options.iter().map(line).collect()
    }

    #[test]
    fn overlay_names_its_layers_by_descriptors_topmost_first() {
        let open = || File::open("/").unwrap();
        let (skeleton, image, home) = (open(), open(), open());
        let lowers = [skeleton.as_fd(), image.as_fd()];
        let files = [&skeleton, &image, &home];
        let read_only = overlay("rcx-root-x", &lowers, None, InodeWidth::Bits64);
        assert_eq!(
            text(&read_only, &files),
            ["source=rcx-root-x", "lowerdir+=A", "lowerdir+=B", "index=off", "xino=on", "metacopy=off"]
        );
        let home = Some(home.as_fd());
        let writable = overlay("rcx-root-x", &lowers, home, InodeWidth::Bits32);
        let common = ["index=off", "xino=off", "metacopy=off"];
        let upper = ["upperdir=C/upper", "workdir=C/work", "redirect_dir=on", "volatile"];
        assert_eq!(text(&writable, &files)[3..], [&common[..], &upper[..]].concat());
        let numbers = lowers.map(|lower| lower.as_raw_fd().to_string()).join(":");
        assert_eq!(
            legacy_overlay(&lowers, None, InodeWidth::Bits64),
            format!("lowerdir={numbers},index=off,xino=on,metacopy=off")
        );
        assert!(
            legacy_overlay(&lowers, home, InodeWidth::Bits64).ends_with("/work,redirect_dir=on,volatile")
        );
    }

    #[test]
    fn tmpfs_is_limited_in_bytes_and_inodes() {
        let options = |limit| text(&tmpfs("rcx-root-x", limit, (8192, 9)), &[]);
        assert_eq!(
            options(Some(64 << 20)),
            ["source=rcx-root-x", "size=67117056", "nr_inodes=16393", "mode=0700"]
        );
        assert_eq!(options(None), ["source=rcx-root-x", "size=8193", "nr_inodes=1033", "mode=0700"]);
    }
}
