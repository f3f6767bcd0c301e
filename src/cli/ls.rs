//! `ls`: lists a directory of an image.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::image_path::ImagePath;
use super::{Context, candidates, error, output, time};
use crate::error::ErrorCode;
use crate::index::IndexedKind;
use crate::layer::{Printable, Timestamp};
use crate::pipeline::OpenImage;
use crate::tree::{IMPLIED_MODE, IMPLIED_MTIME, NodeId};

const EXAMPLES: &str = "\
Examples:
  List the root of an image:
    rcx-imagefs ls python:3.12
  Show a file's mode, owner and size:
    rcx-imagefs ls python:3.12:/usr/bin/python3
  Print the names in a directory:
    rcx-imagefs ls --json python:3.12:/etc | jq -r '.[].name'";

/// List a directory of an image, or show a file
///
/// Shows the merged tree without a mount, as `ls -l` does: type and mode, number of links, owner and group as numbers, size (for a
/// device its numbers), time in UTC, name, and the target of a symbolic link. Links on the way lead to files of the image; a link at
/// the end of PATH is followed only if a slash follows it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LsArgs {
    /// The image, with an absolute path in it
    #[arg(value_name = "REF[:PATH]", add = candidates::images())]
    place: String,
    /// Path in the image [default: its root]
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A file of an image.
#[derive(Debug, Serialize)]
struct FileJson {
    name: String,
    kind: &'static str,
    /// Permission bits in octal, four digits.
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    /// Length in bytes of a regular file.
    size: Option<u64>,
    /// Modification time in seconds since 1970, and the nanoseconds after it.
    mtime: i64,
    mtime_nsec: u32,
    /// Target of a symbolic link.
    target: Option<String>,
    /// Numbers of a device: `MAJOR:MINOR`.
    device: Option<String>,
}

pub(super) fn run(context: &Context, args: &LsArgs) -> anyhow::Result<()> {
    let place = ImagePath::parse(&args.place);
    let path = match (&place.path, &args.path) {
        (Some(_), Some(_)) => {
            let message = format!("`{}` has a path already; give only one", args.place);
            return Err(error::fail(ErrorCode::Usage, message));
        }
        (Some(path), None) | (None, Some(path)) => path.clone(),
        (None, None) => PathBuf::from("/"),
    };
    let store = context.open_store()?;
    let opened = context.open_leased(&store, &place.reference)?;
    let image = &opened.image;
    let found = image.find(&path, false).with_context(|| opened.name.clone())?;
    let files: Vec<FileJson> = if image.tree.is_directory(found.node) {
        image.tree.children(found.node).map(|(name, node)| file(image, name, node)).collect()
    } else {
        use std::os::unix::ffi::OsStrExt as _;
        vec![file(image, found.path.as_os_str().as_bytes(), found.node)]
    };
    if args.json {
        return output::json(&files);
    }
    print(&files)
}

fn file(image: &OpenImage, name: &[u8], node: NodeId) -> FileJson {
    let (mode, uid, gid, mtime, kind) = match image.entry(node) {
        None => (IMPLIED_MODE, 0, 0, IMPLIED_MTIME, IndexedKind::Directory),
        Some(entry) => (entry.mode(), entry.uid(), entry.gid(), entry.mtime(), entry.kind()),
    };
    let Timestamp { sec, nsec } = mtime;
    let mut file = FileJson {
        name: Printable(name).to_string(),
        kind: "directory",
        mode: format!("{mode:04o}"),
        links: image.tree.nlink(node),
        uid,
        gid,
        size: None,
        mtime: sec,
        mtime_nsec: nsec,
        target: None,
        device: None,
    };
    match kind {
        IndexedKind::Directory => {}
        IndexedKind::Regular { size } => (file.kind, file.size) = ("file", Some(size)),
        IndexedKind::Symlink { target } => {
            (file.kind, file.target) = ("symlink", Some(Printable(target).to_string()));
        }
        IndexedKind::CharDevice { major, minor } => {
            (file.kind, file.device) = ("character-device", Some(format!("{major}:{minor}")));
        }
        IndexedKind::BlockDevice { major, minor } => {
            (file.kind, file.device) = ("block-device", Some(format!("{major}:{minor}")));
        }
        IndexedKind::Fifo => file.kind = "fifo",
        // A node's entry is never a hard link.
        IndexedKind::Hardlink { .. } => file.kind = "hard-link",
    }
    file
}

/// Prints one line per file, with the numbers aligned.
fn print(files: &[FileJson]) -> anyhow::Result<()> {
    let size = |file: &FileJson| match (&file.device, file.size) {
        (Some(device), _) => device.clone(),
        (None, Some(size)) => size.to_string(),
        (None, None) => "-".to_owned(),
    };
    let width =
        |cell: &dyn Fn(&FileJson) -> String| files.iter().map(|file| cell(file).len()).max().unwrap_or(0);
    let links = width(&|file| file.links.to_string());
    let uid = width(&|file| file.uid.to_string());
    let gid = width(&|file| file.gid.to_string());
    let sizes = width(&size);
    for file in files {
        let arrow = file.target.as_ref().map_or(String::new(), |target| format!(" -> {target}"));
        output::line(format!(
            "{}{} {:>links$} {:>uid$} {:>gid$} {:>sizes$} {} {}{arrow}",
            kind_letter(file.kind),
            permissions(u32::from_str_radix(&file.mode, 8).unwrap_or(0)),
            file.links,
            file.uid,
            file.gid,
            size(file),
            time::short(file.mtime),
            file.name,
        ))?;
    }
    Ok(())
}

fn kind_letter(kind: &str) -> char {
    match kind {
        "directory" => 'd',
        "symlink" => 'l',
        "character-device" => 'c',
        "block-device" => 'b',
        "fifo" => 'p',
        _ => '-',
    }
}

/// Formats permission bits as `ls -l` does, for example `rwsr-xr-t`.
fn permissions(mode: u32) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, false) => 'x',
            (false, false) => '-',
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_written_as_ls_writes_them() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o4755, "rwsr-xr-x"),
            (0o2640, "rw-r-S---"),
            (0o1777, "rwxrwxrwt"),
            (0o1000, "--------T"),
            (0, "---------"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}
