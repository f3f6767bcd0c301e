//! Lists the members of a tar once, so that each can be read at its position.
//!
//! The `tar` crate parses the headers, but does not iterate over the archive. Its iterator keeps the long names of a hostile
//! archive in memory whatever their length, and its raw iterator does not apply PAX sizes.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use super::ImportError;
use super::tar_bytes::TarBytes;
use crate::layer::tar::pax_records;
use crate::os::PathWalk;

/// Size of a tar block, in bytes.
const BLOCK: u64 = 512;

/// Longest extended header, in bytes. Names have at most `PATH_MAX` bytes, and builders add a few attributes.
const EXTENSION_MAX: u64 = 1 << 20;

/// Maximum number of members of an archive. An image of 1000 layers has about 4000 in the oldest format.
const MEMBERS_MAX: usize = 100_000;

/// Maximum number of links that are followed to reach a file. `docker save` needs only one.
const LINKS_MAX: u32 = 8;

/// Position and size of a regular file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) size: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum ArchiveMember {
    File(Extent),
    /// A link and its target: absolute for a hard link, relative to the link's directory for a symlink. `None` for a symlink
    /// with an absolute target, which leads out of the archive.
    Link(Option<PathBuf>),
}

/// All files and links, by absolute path within the archive. If a path repeats, the last member wins, as it does when a tar is
/// extracted.
#[derive(Debug, Default)]
pub(super) struct ArchiveMembers {
    by_path: HashMap<PathBuf, ArchiveMember>,
    /// The files that later members with their paths replace.
    replaced: HashMap<PathBuf, Vec<Extent>>,
}

/// Values from extended headers for the next member.
#[derive(Default)]
struct ExtendedHeader {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl ArchiveMembers {
    /// Reads all headers of a tar.
    pub(super) fn read(file: &TarBytes) -> Result<Self, ImportError> {
        let length = file.length().map_err(ImportError::Open)?;
        let mut members = Self::default();
        let mut extended = ExtendedHeader::default();
        let mut offset = 0;
        let mut count = 0;
        while let Some(header) = read_header(file, offset, length)? {
            let damaged = |reason| ImportError::Tar { offset, reason };
            let entry_type = header.entry_type();
            let is_extended = entry_type.is_pax_local_extensions()
                || entry_type.is_gnu_longname()
                || entry_type.is_gnu_longlink();
            let own_size = header.entry_size().map_err(|_| damaged("malformed size"))?;
            // A PAX size applies to the next file, never to another extended header.
            let size = extended.size.filter(|_| !is_extended).unwrap_or(own_size);
            let data = Extent { offset: offset + BLOCK, size };
            let end = data.offset.checked_add(size).ok_or_else(|| damaged("size out of range"))?;
            if end > length {
                let name = extended.path.take().unwrap_or_else(|| text(&header.path_bytes()));
                return Err(ImportError::Truncated(name));
            }
            if is_extended {
                extended.read(entry_type, file, data).map_err(|source| match source {
                    Some(source) => ImportError::Read { file: "an extended header".to_owned(), source },
                    None => damaged("malformed extended header"),
                })?;
            } else {
                let ExtendedHeader { path, link, .. } = std::mem::take(&mut extended);
                let path = path.unwrap_or_else(|| text(&header.path_bytes()));
                let link = link.or_else(|| Some(text(&header.link_name_bytes()?)));
                ImportError::check_path(&path)?;
                link.as_deref().map_or(Ok(()), ImportError::check_path)?;
                if let Some(path) = normalised(&path)
                    && let Some(member) = member(entry_type, data, link)
                {
                    members.add(path, member);
                }
            }
            count += 1;
            if count > MEMBERS_MAX {
                return Err(damaged("more than 100000 members"));
            }
            offset = end.next_multiple_of(BLOCK);
        }
        Ok(members)
    }

    fn add(&mut self, path: PathBuf, member: ArchiveMember) {
        if let Some(ArchiveMember::File(earlier)) = self.by_path.insert(path.clone(), member) {
            self.replaced.entry(path).or_default().push(earlier);
        }
    }

    /// The files at a path that a later member replaces.
    pub(super) fn replaced(&self, path: &str) -> &[Extent] {
        normalised(path).and_then(|path| self.replaced.get(&path)).map_or(&[], Vec::as_slice)
    }

    /// The directories at the top that contain a file or link of this name, in byte order.
    pub(super) fn directories_with(&self, name: &str) -> Vec<String> {
        let directory = |path: &PathBuf| {
            let directory = path.parent()?.strip_prefix("/").ok()?.to_str()?;
            let is_top = !directory.is_empty() && !directory.contains('/');
            (is_top && path.file_name()? == name).then(|| directory.to_owned())
        };
        let mut directories: Vec<String> = self.by_path.keys().filter_map(directory).collect();
        directories.sort_unstable();
        directories
    }

    /// Finds a file and follows links. `None` if the archive has no file or link at this path.
    ///
    /// Links are followed only at the end of the path: builders do not link directories.
    pub(super) fn find(&self, path: &str) -> Result<Option<Extent>, ImportError> {
        let broken = || ImportError::Link(path.to_owned());
        let mut walk = PathWalk::new(Path::new(path), Path::new("/"), LINKS_MAX);
        let mut is_link = false;
        loop {
            while walk.step().is_some() {}
            let member = self.by_path.get(walk.at()).filter(|_| !walk.has_left_root());
            match member {
                Some(ArchiveMember::File(extent)) => return Ok(Some(*extent)),
                Some(ArchiveMember::Link(Some(target))) => walk.follow(target).map_err(|_| broken())?,
                Some(ArchiveMember::Link(None)) => return Err(broken()),
                None if is_link => return Err(broken()),
                None => return Ok(None),
            }
            is_link = true;
        }
    }
}

/// Reads the header at an offset; `None` at the end. The end blocks may be missing.
fn read_header(file: &TarBytes, offset: u64, length: u64) -> Result<Option<tar::Header>, ImportError> {
    if offset >= length {
        return if offset == 0 {
            Err(ImportError::Tar { offset, reason: "the file is empty" })
        } else {
            Ok(None)
        };
    }
    let mut block = [0; 512];
    file.read_exact_at(&mut block, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => ImportError::Tar { offset, reason: "incomplete header" },
        _ => ImportError::Read { file: "a header".to_owned(), source },
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
        return Err(ImportError::Tar { offset, reason: "header checksum does not match" });
    }
    Ok(Some(header.clone()))
}

/// Returns a member; `None` if its type is of no use here, or if a link has no target.
fn member(entry_type: tar::EntryType, data: Extent, link: Option<String>) -> Option<ArchiveMember> {
    if entry_type.is_symlink() {
        return Some(ArchiveMember::Link(Some(PathBuf::from(link?)).filter(|target| target.is_relative())));
    }
    if entry_type.is_hard_link() {
        return Some(ArchiveMember::Link(Some(Path::new("/").join(link?))));
    }
    // The bytes of a sparse file are not consecutive. No tool writes images with sparse files.
    (entry_type.is_file() || entry_type.is_contiguous()).then_some(ArchiveMember::File(data))
}

/// Returns the absolute path of a member without `.` and `..`; `None` if it is the root or leads out of the archive.
fn normalised(path: &str) -> Option<PathBuf> {
    let mut walk = PathWalk::new(Path::new(path), Path::new("/"), 0);
    while walk.step().is_some() {}
    (!walk.has_left_root() && walk.at() != Path::new("/")).then(|| walk.into_path())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl ExtendedHeader {
    /// Reads the data of an extended header. The error is `None` if the data is malformed.
    fn read(
        &mut self,
        entry_type: tar::EntryType,
        file: &TarBytes,
        data: Extent,
    ) -> Result<(), Option<io::Error>> {
        if data.size > EXTENSION_MAX {
            return Err(None);
        }
        let mut bytes = vec![0; usize::try_from(data.size).map_err(|_| None)?];
        file.read_exact_at(&mut bytes, data.offset).map_err(Some)?;
        if !entry_type.is_pax_local_extensions() {
            let name = text(bytes.split(|byte| *byte == 0).next().unwrap_or_default());
            *(if entry_type.is_gnu_longname() { &mut self.path } else { &mut self.link }) = Some(name);
            return Ok(());
        }
        for record in pax_records(&bytes) {
            let (key, value) = record.map_err(|_| None)?;
            match key {
                b"path" => self.path = Some(text(value)),
                b"linkpath" => self.link = Some(text(value)),
                b"size" => self.size = Some(text(value).parse().map_err(|_| None)?),
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

    fn members(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Result<ArchiveMembers, ImportError> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        read(&builder.into_inner().unwrap())
    }

    fn read(bytes: &[u8]) -> Result<ArchiveMembers, ImportError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        ArchiveMembers::read(&TarBytes::Plain(file))
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
    fn file_is_found_by_path_and_through_links() {
        let long = format!("{}/file", "d".repeat(300));
        let archive = members(|builder| {
            file(builder, "./a/layer.tar", b"12345");
            file(builder, "b", b"");
            file(builder, &long, b"xyz");
            link(builder, "c/layer.tar", "../a/layer.tar");
            link(builder, "d", "c/layer.tar");
        })
        .unwrap();
        let a = archive.find("a/layer.tar").unwrap().unwrap();
        assert_eq!(a, Extent { offset: 512, size: 5 });
        assert_eq!(archive.find("./a//layer.tar").unwrap(), Some(a));
        assert_eq!(archive.find("c/layer.tar").unwrap(), Some(a));
        assert_eq!(archive.find("d").unwrap(), Some(a));
        assert_eq!(archive.find("b").unwrap().unwrap().size, 0);
        assert_eq!(archive.find(&long).unwrap().unwrap().size, 3);
        assert_eq!(archive.find("e").unwrap(), None);
        assert_eq!(archive.find("a/../../b").unwrap(), None);
    }

    #[test]
    fn link_out_of_the_archive_to_no_file_or_into_a_loop_is_an_error() {
        let archive = members(|builder| {
            file(builder, "passwd", b"x");
            link(builder, "a/up", "../../passwd");
            link(builder, "a/absolute", "/passwd");
            link(builder, "a/nowhere", "b");
            link(builder, "x", "y");
            link(builder, "y", "x");
            link(builder, "absolute", "/passwd");
        })
        .unwrap();
        for path in ["a/up", "a/absolute", "a/nowhere", "x", "absolute"] {
            assert!(matches!(archive.find(path), Err(ImportError::Link(_))), "{path}");
        }
    }

    #[test]
    fn at_most_eight_links_are_followed() {
        let archive = members(|builder| {
            file(builder, "0", b"x");
            for link_number in 1..=9 {
                link(builder, &link_number.to_string(), &(link_number - 1).to_string());
            }
        })
        .unwrap();
        assert!(archive.find("8").unwrap().is_some());
        assert!(matches!(archive.find("9"), Err(ImportError::Link(_))));
    }

    #[test]
    fn hard_link_target_is_relative_to_the_root_of_the_archive() {
        let archive = members(|builder| {
            file(builder, "a/file", b"x");
            for (path, target) in [("b/good", "a/file"), ("b/absolute", "/a/file"), ("b/out", "../a/file")] {
                let mut header = tar::Header::new_gnu();
                header.set_entry_type(tar::EntryType::Link);
                header.set_size(0);
                builder.append_link(&mut header, path, target).unwrap();
            }
        })
        .unwrap();
        assert_eq!(archive.find("b/good").unwrap(), archive.find("a/file").unwrap());
        assert_eq!(archive.find("b/absolute").unwrap(), archive.find("a/file").unwrap());
        assert!(matches!(archive.find("b/out"), Err(ImportError::Link(_))));
    }

    #[test]
    fn pax_path_and_size_apply_to_the_next_file() {
        let archive = members(|builder| {
            builder.append_pax_extensions([("path", "real".as_bytes()), ("size", b"700")]).unwrap();
            // Go writes files beyond 8 GiB with a ustar size of 0 and a PAX size.
            let mut header = tar::Header::new_ustar();
            header.set_path("other").unwrap();
            header.set_size(0);
            header.set_cksum();
            builder.get_mut().extend_from_slice(header.as_bytes());
            builder.get_mut().extend_from_slice(&[7; 1024]);
            file(builder, "next", b"n");
        })
        .unwrap();
        assert_eq!(archive.find("real").unwrap().unwrap().size, 700);
        assert!(archive.find("next").unwrap().is_some());
        assert_eq!(archive.find("other").unwrap(), None);
    }

    #[test]
    fn pax_values_may_be_any_bytes() {
        let archive = members(|builder| {
            let attribute = ("SCHILY.xattr.com.apple.provenance", &b"\x01\n\0 7 a=b\n\xff"[..]);
            builder.append_pax_extensions([attribute, ("path", b"real")]).unwrap();
            file(builder, "other", b"x");
        })
        .unwrap();
        assert!(archive.find("real").unwrap().is_some());
        assert_eq!(archive.find("other").unwrap(), None);
    }

    #[test]
    fn damaged_archive_is_refused() {
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
    fn extended_header_beyond_the_limit_is_refused() {
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
