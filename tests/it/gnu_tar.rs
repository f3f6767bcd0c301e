//! Compares archives of GNU tar, in all its formats, with the files that they were made of.

use std::collections::HashMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcx_imagefs::layer::{EntryKind, FileContent, MemberName, TarEntry, TarWalk};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};
use tempfile::TempDir;

/// A directory with one file of each kind that an unprivileged user can make and the format can store.
fn tree(long_names: bool) -> TempDir {
    let temp = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| temp.path().join(name);
    let long = "n".repeat(if long_names { 240 } else { 60 });
    fs::create_dir_all(at(&format!("d/{long}/e"))).unwrap();
    fs::write(at("d/file"), "hello").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("blocks"), vec![b'b'; 20 * 512]).unwrap();
    fs::write(at(&format!("d/{long}/e/{}", &long[..90.min(long.len())])), "deep").unwrap();
    fs::hard_link(at("d/file"), at("d/hard")).unwrap();
    symlink("../nowhere", at("d/link")).unwrap();
    symlink(format!("{long}/{}", &long[..30]), at("long-link")).unwrap();
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from(0o640), 0).unwrap();
    fs::write(temp.path().join(std::ffi::OsStr::from_bytes(b"odd\xff\n\\ =")), "odd").unwrap();
    fs::set_permissions(at("blocks"), fs::Permissions::from_mode(0o4751)).unwrap();

    let holes = File::create(at("holes")).unwrap();
    holes.set_len((1 << 40) + 7).unwrap();
    for segment in 0..70u64 {
        holes.write_all_at(format!("segment {segment}").as_bytes(), segment << 20).unwrap();
    }
    let data_last = File::create(at("data-last")).unwrap();
    data_last.write_all_at(b"the end", 3 << 20).unwrap();
    File::create(at("hole")).unwrap().set_len(5 << 20).unwrap();

    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    for name in ["d/file", "empty", "holes", "d"] {
        File::open(at(name)).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
    }
    temp
}

fn archive(dir: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").args(arguments).args(["-C"]).arg(dir).args(["-cf", "-", "."]).output();
    let output = output.expect("GNU tar is installed");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn entries(tar: &[u8]) -> HashMap<PathBuf, TarEntry> {
    let mut walk = TarWalk::new(tar);
    let mut entries = HashMap::new();
    while let Some(entry) = walk.next_entry().unwrap() {
        let MemberName::Plain(path) = &entry.member else { panic!("{entry:?}") };
        let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.as_bytes()));
        assert!(entries.insert(path, entry).is_none());
    }
    entries
}

/// Compares the bytes of a file, including its holes, without reading a terabyte of zeros.
fn assert_same_content(file: &Path, tar: &[u8], size: u64, content: &FileContent) {
    let file = File::open(file).unwrap();
    assert_eq!(file.metadata().unwrap().len(), size);
    let segments: Vec<(u64, u64, u64)> = match content {
        FileContent::Contiguous(at) => vec![(0, at.get(), size)],
        FileContent::Sparse(segments) => segments.iter().map(|s| (s.logical, s.tar.get(), s.len)).collect(),
    };
    for &(logical, at, len) in &segments {
        let mut expected = vec![0; usize::try_from(len).unwrap()];
        file.read_exact_at(&mut expected, logical).unwrap();
        assert!(expected == tar[usize::try_from(at).unwrap()..][..expected.len()]);
    }
    // Data outside of the segments must be zeros.
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        let mut block = vec![0; usize::try_from(end - data).unwrap()];
        file.read_exact_at(&mut block, data).unwrap();
        for (position, _) in block.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            let position = data + position as u64;
            assert!(segments.iter().any(|(logical, _, len)| (*logical..logical + len).contains(&position)));
        }
        at = end;
    }
}

/// Checks that a tar holds exactly the files of a directory. Returns the number of sparse files.
fn assert_same(dir: &Path, tar: &[u8], nanoseconds: bool) -> usize {
    let mut entries = entries(tar);
    let mut sparse = 0;
    let mut stack = vec![PathBuf::new()];
    while let Some(path) = stack.pop() {
        let file = dir.join(&path);
        let meta = file.symlink_metadata().unwrap();
        let entry = entries.remove(&path).unwrap_or_else(|| panic!("{path:?} is missing"));
        if let EntryKind::Hardlink { target } = &entry.kind {
            let target = dir.join(std::ffi::OsStr::from_bytes(target.as_bytes()));
            assert_eq!(meta.ino(), target.symlink_metadata().unwrap().ino(), "{path:?}");
            continue;
        }
        assert_eq!(u32::from(entry.mode), meta.mode() & 0o7777, "{path:?}");
        assert_eq!((entry.uid, entry.gid), (meta.uid(), meta.gid()), "{path:?}");
        assert_eq!(entry.mtime.sec, meta.mtime(), "{path:?}");
        assert_eq!(i64::from(entry.mtime.nsec), if nanoseconds { meta.mtime_nsec() } else { 0 }, "{path:?}");
        match &entry.kind {
            EntryKind::Directory => {
                stack.extend(fs::read_dir(&file).unwrap().map(|child| path.join(child.unwrap().file_name())));
                assert!(meta.is_dir());
            }
            EntryKind::Symlink { target } => {
                assert_eq!(&**target, fs::read_link(&file).unwrap().as_os_str().as_bytes());
            }
            EntryKind::Regular { size, content } => {
                assert!(meta.is_file());
                sparse += usize::from(matches!(content, FileContent::Sparse(_)));
                assert_same_content(&file, tar, *size, content);
            }
            EntryKind::Fifo => assert!(meta.file_type().is_fifo()),
            kind => panic!("{path:?} is unexpectedly {kind:?}"),
        }
    }
    assert!(entries.is_empty(), "{entries:?}");
    sparse
}

#[test]
fn every_format_gives_the_same_files() {
    let temp = tree(true);
    // Without -S, tar would write a terabyte for this file.
    fs::remove_file(temp.path().join("holes")).unwrap();
    for format in ["gnu", "oldgnu", "pax"] {
        let tar = archive(temp.path(), &["--format", format]);
        assert_eq!(assert_same(temp.path(), &tar, format == "pax"), 0, "{format}");
    }
    let temp = tree(false);
    fs::remove_file(temp.path().join("holes")).unwrap();
    for format in ["ustar", "v7"] {
        if format == "v7" {
            fs::remove_file(temp.path().join("pipe")).unwrap();
            fs::remove_dir_all(temp.path().join("d").join("n".repeat(60))).unwrap();
        }
        let tar = archive(temp.path(), &["--format", format]);
        assert_eq!(assert_same(temp.path(), &tar, false), 0, "{format}");
    }
}

#[test]
fn every_sparse_format_gives_the_same_bytes() {
    let temp = tree(true);
    let formats: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=oldgnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
        &["--format=pax", "--sparse-version=1.0", "--hole-detection=raw"],
    ];
    for format in formats {
        if format.contains(&"--hole-detection=raw") {
            fs::remove_file(temp.path().join("holes")).unwrap();
        }
        let tar = archive(temp.path(), &[&["-S"], format].concat());
        let expected = if format.contains(&"--hole-detection=raw") { 2 } else { 3 };
        assert_eq!(assert_same(temp.path(), &tar, format[0] == "--format=pax"), expected, "{format:?}");
    }
}

#[test]
fn xattrs_are_read() {
    let temp = tree(true);
    let file = temp.path().join("d/file");
    let values: [(&str, &[u8]); 3] =
        [("user.one", b"\0\n=\xff"), ("user.empty", b""), ("user.long", &[b'x'; 2000])];
    for (name, value) in values {
        rustix::fs::setxattr(&file, name, value, XattrFlags::CREATE).unwrap();
    }
    let tar = archive(temp.path(), &["-S", "--format=pax", "--xattrs"]);
    assert_same(temp.path(), &tar, true);
    let entries = entries(&tar);
    // The first of the two hard links has them.
    let named = entries.values().find(|entry| !entry.xattrs.is_empty()).unwrap();
    let mut expected: Vec<_> = values.iter().map(|(name, value)| (name.as_bytes(), *value)).collect();
    expected.sort_unstable();
    let found: Vec<_> = named.xattrs.iter().map(|(name, value)| (&**name, &**value)).collect();
    let found: Vec<_> = found.into_iter().filter(|(name, _)| name.starts_with(b"user.")).collect();
    assert_eq!(found, expected);
}

#[test]
fn truncated_archive_is_an_error_except_between_entries() {
    let temp = tree(true);
    let tar = archive(temp.path(), &["-S", "--format=pax"]);
    let mut boundaries = vec![0];
    let mut walk = TarWalk::new(&tar[..]);
    while walk.next_entry().unwrap().is_some() {
        boundaries.push(walk.position().get());
    }
    let last = *boundaries.last().unwrap();
    for length in (0..=tar.len()).step_by(512) {
        let mut walk = TarWalk::new(&tar[..length]);
        let result = std::iter::from_fn(|| walk.next_entry().transpose()).collect::<Result<Vec<_>, _>>();
        let length = length as u64;
        assert_eq!(result.is_ok(), boundaries.contains(&length) || length > last, "{length}: {result:?}");
    }
}
