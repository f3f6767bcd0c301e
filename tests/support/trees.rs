//! Compares two directory trees in everything that a program can see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::RawDir;

/// The most differences that are reported.
const DIFFERENCES_MAX: usize = 40;

/// Checks that the trees at `ours` and `theirs` are equal and hold at least `least` files.
pub fn assert_equal(ours: &Path, theirs: &Path, least: usize) {
    compare(ours, theirs, least, true);
}

/// The same without the link counts of directories: overlayfs does not compute them for merged directories.
pub fn assert_equal_but_directory_links(ours: &Path, theirs: &Path, least: usize) {
    compare(ours, theirs, least, false);
}

fn compare(ours: &Path, theirs: &Path, least: usize, directory_links: bool) {
    let mut comparison =
        Comparison { ours, theirs, directory_links, links: HashMap::new(), differences: Vec::new() };
    let expected = paths(theirs);
    assert!(expected.len() >= least, "{} holds only {} files", theirs.display(), expected.len());
    // First lookups by name, in reverse order, before any directory of `ours` has been read. Then readdir.
    for path in expected.iter().rev() {
        comparison.compare(path);
    }
    let listed = paths(ours);
    for path in expected.symmetric_difference(&listed) {
        let whose = if listed.contains(path) { "only in" } else { "not in" };
        comparison.report(path, format!("{whose} {}", ours.display()));
    }
    let Comparison { differences, .. } = comparison;
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Lists every path below a directory with readdir. The root is the empty path.
pub fn paths(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::from([PathBuf::new()]);
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        let listed =
            fs::read_dir(root.join(&dir)).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        for entry in listed {
            let entry = entry.unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
            let path = dir.join(entry.file_name());
            let is_directory = entry.file_type().expect("readdir returns the file type").is_dir();
            assert!(found.insert(path.clone()), "{} is listed twice", path.display());
            if is_directory {
                open.push(path);
            }
        }
    }
    found
}

struct Comparison<'a> {
    ours: &'a Path,
    theirs: &'a Path,
    directory_links: bool,
    /// Maps inodes of `theirs` to inodes of `ours`, to compare hard links.
    links: HashMap<(u64, u64), u64>,
    differences: Vec<String>,
}

impl Comparison<'_> {
    fn report(&mut self, path: &Path, difference: String) {
        self.differences.push(format!("/{}: {difference}", path.display()));
        assert!(
            self.differences.len() < DIFFERENCES_MAX,
            "too many differences:\n{}",
            self.differences.join("\n")
        );
    }

    fn compare(&mut self, path: &Path) {
        let (ours, theirs) = (at(self.ours, path), at(self.theirs, path));
        let expected =
            fs::symlink_metadata(&theirs).unwrap_or_else(|error| panic!("{}: {error}", theirs.display()));
        let found = match fs::symlink_metadata(&ours) {
            Ok(found) => found,
            Err(error) => return self.report(path, format!("{error}")),
        };
        let text = |of: &Metadata| {
            let text = attributes(of);
            let counted = self.directory_links || !of.is_dir();
            if counted { text } else { text.replace(&format!(" nlink {} ", of.nlink()), " ") }
        };
        let (expected_text, found_text) = (text(&expected), text(&found));
        if expected_text != found_text {
            return self.report(path, format!("\n    expected {expected_text}\n    found    {found_text}"));
        }
        let first = *self.links.entry((expected.dev(), expected.ino())).or_insert(found.ino());
        if first != found.ino() {
            self.report(path, format!("inode {}, but its other name has inode {first}", found.ino()));
        }
        if expected.is_symlink() {
            let (expected, found) = (fs::read_link(&theirs).unwrap(), fs::read_link(&ours).unwrap());
            if expected != found {
                self.report(path, format!("symlink to {}, expected {}", found.display(), expected.display()));
            }
        }
        let (expected_xattrs, found_xattrs) = (xattrs(&theirs), xattrs(&ours));
        if expected_xattrs != found_xattrs {
            self.report(path, format!("xattrs {found_xattrs:?}, expected {expected_xattrs:?}"));
        }
        if expected.is_file()
            && let Some(difference) = content_difference(&ours, &theirs)
        {
            self.report(path, difference);
        }
    }
}

/// Joins a path to a root. The empty path gives the root without a trailing slash, which would follow a symlink.
fn at(root: &Path, path: &Path) -> PathBuf {
    if path.as_os_str().is_empty() { root.to_owned() } else { root.join(path) }
}

/// The fields of stat that an image determines, as text.
pub fn attributes(of: &Metadata) -> String {
    let mut text = format!(
        "mode {:06o} uid {} gid {} nlink {} mtime {}.{:09}",
        of.mode(),
        of.uid(),
        of.gid(),
        of.nlink(),
        of.mtime(),
        of.mtime_nsec()
    );
    let kind = of.file_type();
    if kind.is_file() || kind.is_symlink() {
        write!(text, " size {}", of.size()).unwrap();
    }
    if kind.is_char_device() || kind.is_block_device() {
        write!(text, " rdev {:#x}", of.rdev()).unwrap();
    }
    text
}

/// Describes every file of a tree in one line: attributes, extended attributes, symlink target, hash of the content.
pub fn snapshot(root: &Path) -> Vec<String> {
    let line = |path: &PathBuf| {
        let full = root.join(path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        let content = match () {
            () if kind.is_file() => crate::images::sha256(&fs::read(&full).unwrap()),
            () if kind.is_symlink() => fs::read_link(&full).unwrap().display().to_string(),
            () => String::new(),
        };
        let attributes = attributes(&metadata);
        format!("{} {attributes} {:?} {content}", path.display(), xattrs(&full))
    };
    paths(root).iter().map(line).collect()
}

/// The extended attributes of a file; symlinks are not followed.
pub fn xattrs(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 1 << 16];
    let size = rustix::fs::llistxattr(path, &mut names)
        .unwrap_or_else(|error| panic!("list the xattrs of {}: {error}", path.display()));
    let names = names[..size].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let size = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)
                .unwrap_or_else(|error| panic!("xattr {name:?} of {}: {error}", path.display()));
            (OsString::from_vec(name.to_vec()), value[..size].to_vec())
        })
        .collect()
}

/// Describes the first difference between the contents of two files.
pub fn content_difference(ours: &Path, theirs: &Path) -> Option<String> {
    let mut theirs = File::open(theirs).unwrap_or_else(|error| panic!("{}: {error}", theirs.display()));
    let mut ours = match File::open(ours) {
        Ok(file) => file,
        Err(error) => return Some(format!("open: {error}")),
    };
    let (mut expected, mut found) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    let mut position = 0;
    loop {
        let size = theirs.read(&mut expected).expect("read the reference");
        if size == 0 {
            return match ours.read(&mut found) {
                Ok(0) => None,
                Ok(more) => Some(format!("at least {more} bytes more than the expected {position}")),
                Err(error) => Some(format!("read at {position}: {error}")),
            };
        }
        if let Err(error) = ours.read_exact(&mut found[..size]) {
            return Some(format!("read at {position}: {error}"));
        }
        if expected[..size] != found[..size] {
            let first = (0..size).find(|at| expected[*at] != found[*at]).unwrap();
            return Some(format!("content differs at byte {}", position + first));
        }
        position += size;
    }
}

/// Checks that names, types and contents are equal, and ignores other attributes.
pub fn assert_same_content(ours: &Path, theirs: &Path) {
    let (expected, found) = (paths(theirs), paths(ours));
    let different: Vec<_> = expected.symmetric_difference(&found).collect();
    assert!(different.is_empty(), "only in one tree: {different:?}");
    for path in &expected {
        let (ours, theirs) = (at(ours, path), at(theirs, path));
        let (ours_meta, theirs_meta) =
            (fs::symlink_metadata(&ours).unwrap(), fs::symlink_metadata(&theirs).unwrap());
        assert_eq!(ours_meta.file_type(), theirs_meta.file_type(), "{}", path.display());
        if theirs_meta.is_file() {
            assert_eq!(content_difference(&ours, &theirs), None, "{}", path.display());
        }
        assert!(!theirs_meta.file_type().is_socket());
    }
}

/// Reads names and cookies of a directory from its current position on, with a buffer of `buffer` bytes.
pub fn list(dir: &File, buffer: usize) -> Vec<(String, u64)> {
    let mut buffer = vec![MaybeUninit::uninit(); buffer];
    let mut entries = RawDir::new(dir, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.unwrap();
        names.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    names
}
