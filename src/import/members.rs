//! The members of a tar, found once so that each can be read at its place.
//!
//! The `tar` crate reads each header here, but not the archive: its iterator holds the long names of a hostile archive
//! in memory whatever their length, and without that it knows no PAX sizes.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::ImportError;

const BLOCK: u64 = 512;

/// Longest extended header, in bytes: names are at most `PATH_MAX`; builders add a few attributes.
const EXTENSION_MAX: u64 = 1 << 20;

/// Most members. An image of 1000 layers has some 4000 in the oldest form.
const MEMBERS_MAX: usize = 100_000;

/// Longest chain of links. `docker save` writes chains of one.
const LINKS_MAX: usize = 8;

/// Where a regular file's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Member {
    File(Extent),
    /// Target as a path from the archive's root; `None` if it leads out of it.
    Link(Option<String>),
}

/// All files and links by path. Of equal paths the last counts, as it does when a tar is extracted.
#[derive(Debug, Default)]
pub(super) struct Members(HashMap<String, Member>);

/// What extended headers say about the member that follows them.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl Members {
    /// Walks over all headers.
    pub(super) fn read(file: &File) -> Result<Self, ImportError> {
        let length = file.metadata().map_err(ImportError::Open)?.len();
        let mut members = HashMap::new();
        let mut extension = Extension::default();
        let mut offset = 0;
        while let Some(header) = read_header(file, offset, length)? {
            let bad = |reason| ImportError::Tar { offset, reason };
            let kind = header.entry_type();
            let meta = kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink();
            let own_size = header.entry_size().map_err(|_| bad("a size that is no number"))?;
            // The PAX size is the next file's, never an extended header's own.
            let size = extension.size.filter(|_| !meta).unwrap_or(own_size);
            let data = Extent { offset: offset + BLOCK, size };
            let end = data.offset.checked_add(size).ok_or_else(|| bad("a size without end"))?;
            if end > length {
                let name = extension.path.take().unwrap_or_else(|| text(&header.path_bytes()));
                return Err(ImportError::Truncated(name));
            }
            if meta {
                extension.read(kind, file, data).map_err(|source| match source {
                    Some(source) => ImportError::Read { what: "an extended header".to_owned(), source },
                    None => bad("an extended header that cannot be read"),
                })?;
            } else {
                let Extension { path, link, .. } = std::mem::take(&mut extension);
                let path = path.unwrap_or_else(|| text(&header.path_bytes()));
                let link = link.or_else(|| Some(text(&header.link_name_bytes()?)));
                if let Some(path) = joined("", &path)
                    && let Some(member) = member(kind, data, &path, link)
                {
                    members.insert(path, member);
                }
            }
            if members.len() > MEMBERS_MAX {
                return Err(bad("more files than any image has"));
            }
            offset = end.next_multiple_of(BLOCK);
        }
        Ok(Self(members))
    }

    /// Whether there is a member of this path, of whatever kind.
    fn contains(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    /// Where a file is, links followed; `None` if there is no member of the path.
    pub(super) fn find(&self, path: &str) -> Result<Option<Extent>, ImportError> {
        let broken = || ImportError::Link(path.to_owned());
        let Some(mut current) = joined("", path) else { return Ok(None) };
        if !self.contains(&current) {
            return Ok(None);
        }
        for _ in 0..=LINKS_MAX {
            match self.0.get(&current) {
                Some(Member::File(extent)) => return Ok(Some(*extent)),
                Some(Member::Link(Some(target))) => current.clone_from(target),
                Some(Member::Link(None)) | None => break,
            }
        }
        Err(broken())
    }
}

/// The header at an offset; `None` at the end. A tar without end blocks ends where the file does.
fn read_header(file: &File, offset: u64, length: u64) -> Result<Option<tar::Header>, ImportError> {
    if offset >= length {
        return if offset == 0 { Err(ImportError::Tar { offset, reason: "it is empty" }) } else { Ok(None) };
    }
    let mut block = [0; 512];
    file.read_exact_at(&mut block, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => ImportError::Tar { offset, reason: "part of a header" },
        _ => ImportError::Read { what: "a header".to_owned(), source },
    })?;
    if block.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let header = tar::Header::from_byte_slice(&block);
    // The checksum counts its own eight bytes as spaces (POSIX, pax, "ustar Interchange Format").
    let sum = block
        .iter()
        .enumerate()
        .map(|(i, byte)| u32::from(if (148..156).contains(&i) { b' ' } else { *byte }));
    if header.cksum().ok() != Some(sum.sum()) {
        return Err(ImportError::Tar { offset, reason: "a header whose checksum does not match" });
    }
    Ok(Some(header.clone()))
}

fn member(kind: tar::EntryType, data: Extent, path: &str, link: Option<String>) -> Option<Member> {
    if kind.is_symlink() {
        let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
        return Some(Member::Link(joined(directory, &link?)));
    }
    if kind.is_hard_link() {
        return Some(Member::Link(joined("", &link?)));
    }
    // A sparse file's bytes do not stand one behind the other, and no tool writes an image so.
    (kind.is_file() || kind.is_contiguous()).then_some(Member::File(data))
}

/// A path from the archive's root without `.` and `..`; `None` if it leads out, is empty or absolute where it is a link.
fn joined(directory: &str, path: &str) -> Option<String> {
    if path.starts_with('/') && !directory.is_empty() {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in directory.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Extension {
    /// Reads an extended header's data; the error is `None` if the data is bad and not the reading.
    fn read(&mut self, kind: tar::EntryType, file: &File, data: Extent) -> Result<(), Option<io::Error>> {
        if data.size > EXTENSION_MAX {
            return Err(None);
        }
        let mut bytes = vec![0; usize::try_from(data.size).map_err(|_| None)?];
        file.read_exact_at(&mut bytes, data.offset).map_err(Some)?;
        if !kind.is_pax_local_extensions() {
            let name = text(bytes.split(|byte| *byte == 0).next().unwrap_or_default());
            *(if kind.is_gnu_longname() { &mut self.path } else { &mut self.link }) = Some(name);
            return Ok(());
        }
        for record in tar::PaxExtensions::new(&bytes) {
            let record = record.map_err(Some)?;
            let value = || text(record.value_bytes());
            match record.key_bytes() {
                b"path" => self.path = Some(value()),
                b"linkpath" => self.link = Some(value()),
                b"size" => self.size = Some(value().parse().map_err(|_| None)?),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn members(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Result<Members, ImportError> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        read(&builder.into_inner().unwrap())
    }

    fn read(bytes: &[u8]) -> Result<Members, ImportError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Members::read(&file)
    }

    fn file(builder: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(content.len()).unwrap());
        builder.append_data(&mut header, path, content).unwrap();
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }

    #[test]
    fn files_are_found_by_path_through_links() {
        let long = format!("{}/file", "d".repeat(300));
        let found = members(|builder| {
            file(builder, "./a/layer.tar", b"12345");
            file(builder, "b", b"");
            file(builder, &long, b"xyz");
            link(builder, "c/layer.tar", "../a/layer.tar");
            link(builder, "d", "c/layer.tar");
        })
        .unwrap();
        let a = found.find("a/layer.tar").unwrap().unwrap();
        assert_eq!(a, Extent { offset: 512, size: 5 });
        assert_eq!(found.find("./a//layer.tar").unwrap(), Some(a));
        assert_eq!(found.find("c/layer.tar").unwrap(), Some(a));
        assert_eq!(found.find("d").unwrap(), Some(a));
        assert_eq!(found.find("b").unwrap().unwrap().size, 0);
        assert_eq!(found.find(&long).unwrap().unwrap().size, 3);
        assert_eq!(found.find("e").unwrap(), None);
        assert_eq!(found.find("a/../../b").unwrap(), None);
    }

    #[test]
    fn links_never_lead_out_or_in_circles() {
        let found = members(|builder| {
            file(builder, "passwd", b"x");
            link(builder, "a/up", "../../passwd");
            link(builder, "a/absolute", "/passwd");
            link(builder, "a/nowhere", "b");
            link(builder, "x", "y");
            link(builder, "y", "x");
        })
        .unwrap();
        for path in ["a/up", "a/absolute", "a/nowhere", "x"] {
            assert!(matches!(found.find(path), Err(ImportError::Link(_))), "{path}");
        }
    }

    #[test]
    fn pax_path_and_size_belong_to_the_next_file() {
        let found = members(|builder| {
            builder.append_pax_extensions([("path", "real".as_bytes()), ("size", b"700")]).unwrap();
            // A ustar size of 0 beside a PAX size is how Go writes files beyond 8 GiB.
            let mut header = tar::Header::new_ustar();
            header.set_path("other").unwrap();
            header.set_size(0);
            header.set_cksum();
            builder.get_mut().extend_from_slice(header.as_bytes());
            builder.get_mut().extend_from_slice(&[7; 1024]);
            file(builder, "next", b"n");
        })
        .unwrap();
        assert_eq!(found.find("real").unwrap().unwrap().size, 700);
        assert!(found.find("next").unwrap().is_some());
        assert!(!found.contains("other"));
    }

    #[test]
    fn damaged_archives_are_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        file(&mut builder, "a", &[1; 2000]);
        let good = builder.into_inner().unwrap();
        assert!(read(&good).is_ok());
        assert!(read(&good[..2560]).is_ok(), "the end blocks may be missing");
        assert!(matches!(read(&good[..2000]), Err(ImportError::Truncated(name)) if name == "a"));
        assert!(matches!(read(&good[..100]), Err(ImportError::Tar { .. })));
        assert!(matches!(read(b""), Err(ImportError::Tar { .. })));
        assert!(matches!(read(&[b'x'; 4096]), Err(ImportError::Tar { offset: 0, .. })));
        let mut flipped = good;
        flipped[3] ^= 1;
        assert!(matches!(read(&flipped), Err(ImportError::Tar { offset: 0, .. })));
    }

    #[test]
    fn extended_headers_are_bounded() {
        let huge = |kind| {
            members(|builder| {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(kind);
                header.set_size(EXTENSION_MAX + 1);
                header.set_path("x").unwrap();
                header.set_cksum();
                builder.append(&header, io::repeat(b'a').take(EXTENSION_MAX + 1)).unwrap();
            })
        };
        use std::io::Read as _;
        for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
            assert!(matches!(huge(kind), Err(ImportError::Tar { .. })), "{kind:?}");
        }
    }
}
