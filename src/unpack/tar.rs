//! Writes a plan as a tar, in the format of GNU tar with PAX records for what its headers cannot hold.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use tar::{Builder, EntryType, Header};

use super::attributes::NodeAttributes;
use super::{DirectoryNo, FileReader, PlanName, UnpackError, UnpackOptions, UnpackPlan};
use crate::index::{IndexedKind, Layer, ReadError};
use crate::layer::Timestamp;
use crate::tree::NodeSource;

/// Length of the fields for names and link targets in a header.
const NAME_BYTES: usize = 100;

/// Writes the directories and files of a plan as a tar. Their paths start with `prefix`, the path of the plan's root in the tar;
/// with an empty prefix the root is `./`.
///
/// Of the options, those about attributes apply.
///
/// # Errors
///
/// The content of a layer cannot be read, or `out` cannot be written.
pub fn write_tar<D: AsRef<[u8]>>(
    plan: &UnpackPlan,
    layers: &[&Layer<D>],
    prefix: &[u8],
    out: impl Write,
    options: &UnpackOptions<'_>,
) -> Result<(), UnpackError> {
    let mut paths: HashMap<DirectoryNo, Vec<u8>> = HashMap::new();
    let mut members = Vec::new();
    for (number, directory) in plan.numbered() {
        let path = match paths.get(&directory.place.directory) {
            None => prefix.to_vec(),
            Some(parent) => join(parent, &directory.place.name),
        };
        members.push((path.clone(), TarMember::Directory(directory.source)));
        paths.insert(number, path);
    }
    for (number, node) in plan.nodes.iter().enumerate() {
        let path_of = |name: &PlanName| join(&paths[&name.directory], &name.name);
        members.extend(node.names.iter().map(|name| (path_of(name), TarMember::Node(number))));
    }
    // Depth first: GNU tar restores the times of a directory when the first member outside of it follows.
    let components =
        |path: &Vec<u8>| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
    members.sort_by_cached_key(|(path, _)| components(path));
    let mut writer = TarWriter { layers, options, tar: Builder::new(out), reader: FileReader::default() };
    let mut first_names: HashMap<usize, Vec<u8>> = HashMap::new();
    for (path, member) in members {
        match member {
            TarMember::Directory(source) => writer.directory(&path, source)?,
            TarMember::Node(number) => match first_names.get(&number) {
                Some(first) => writer.hard_link(&path, first)?,
                None => {
                    let node = &plan.nodes[number];
                    writer.node(&path, node.source)?;
                    if node.names.len() > 1 {
                        first_names.insert(number, path);
                    }
                }
            },
        }
    }
    writer.tar.into_inner().and_then(|mut out| out.flush()).map_err(UnpackError::Tar)
}

/// A member of the tar.
enum TarMember {
    Directory(NodeSource),
    /// A name of a node: an index into [`UnpackPlan::nodes`].
    Node(usize),
}

fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() { name.to_vec() } else { [directory, b"/", name].concat() }
}

struct TarWriter<'a, D, W: Write> {
    layers: &'a [&'a Layer<D>],
    options: &'a UnpackOptions<'a>,
    tar: Builder<W>,
    reader: FileReader,
}

impl<D: AsRef<[u8]>, W: Write> TarWriter<'_, D, W> {
    fn directory(&mut self, path: &[u8], source: NodeSource) -> Result<(), UnpackError> {
        let path = [if path.is_empty() { b"." } else { path }, b"/"].concat();
        let layers = self.layers;
        let entry = match source {
            NodeSource::Implied => None,
            NodeSource::Entry { layer, entry } => Some(layers[layer.index()].index().entry(entry)),
        };
        let attributes = entry.as_ref().map_or_else(NodeAttributes::implied, NodeAttributes::of_entry);
        let (header, records) = self.header(EntryType::Directory, &path, b"", &attributes);
        self.append(header, &records, io::empty())
    }

    fn node(&mut self, path: &[u8], source: NodeSource) -> Result<(), UnpackError> {
        let NodeSource::Entry { layer, entry: id } = source else { return Ok(()) };
        let layers = self.layers;
        let layer = layers[layer.index()];
        let entry = layer.index().entry(id);
        let attributes = NodeAttributes::of_entry(&entry);
        let (kind, target, device) = match entry.kind() {
            IndexedKind::Regular { size } => {
                let (mut header, records) = self.header(EntryType::Regular, path, b"", &attributes);
                header.set_size(size);
                let mut reader = std::mem::take(&mut self.reader);
                let result = self.append(header, &records, reader.stream(layer, id));
                self.reader = reader;
                return result.map_err(|error| read_error(error, path));
            }
            IndexedKind::Symlink { target } => (EntryType::Symlink, target, None),
            IndexedKind::CharDevice { major, minor } => (EntryType::Char, &b""[..], Some((major, minor))),
            IndexedKind::BlockDevice { major, minor } => (EntryType::Block, &b""[..], Some((major, minor))),
            IndexedKind::Fifo => (EntryType::Fifo, &b""[..], None),
            IndexedKind::Directory | IndexedKind::Hardlink { .. } => {
                unreachable!("a plan has no nodes for directories and hard links")
            }
        };
        let (mut header, records) = self.header(kind, path, target, &attributes);
        if let (Some((major, minor)), Some(fields)) = (device, header.as_gnu_mut()) {
            fields.set_device_major(major);
            fields.set_device_minor(minor);
        }
        self.append(header, &records, io::empty())
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let attributes = NodeAttributes::implied();
        let (header, records) = self.header(EntryType::Link, path, target, &attributes);
        self.append(header, &records, io::empty())
    }

    /// Returns a header and the PAX records that must precede it.
    fn header(
        &self,
        kind: EntryType,
        path: &[u8],
        target: &[u8],
        attributes: &NodeAttributes<'_>,
    ) -> (Header, Vec<(String, Vec<u8>)>) {
        let mut header = Header::new_gnu();
        let mut records = Vec::new();
        header.set_entry_type(kind);
        header.set_size(0);
        let fields = header.as_old_mut();
        for (key, value, field) in
            [("path", path, &mut fields.name), ("linkpath", target, &mut fields.linkname)]
        {
            let fitting = value.len().min(NAME_BYTES);
            field[..fitting].copy_from_slice(&value[..fitting]);
            if value.len() > NAME_BYTES {
                records.push((key.to_owned(), value.to_vec()));
            }
        }
        let attributes = self.options.apply(*attributes);
        header.set_mode(attributes.mode.into());
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        let Timestamp { sec, nsec } = attributes.mtime;
        header.set_mtime(u64::try_from(sec).unwrap_or(0));
        if sec < 0 || nsec > 0 {
            records.push(("mtime".to_owned(), decimal(sec, nsec).into_bytes()));
        }
        for (name, value) in attributes.xattrs() {
            records.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(name)), value.to_vec()));
        }
        (header, records)
    }

    fn append(
        &mut self,
        mut header: Header,
        records: &[(String, Vec<u8>)],
        content: impl Read,
    ) -> Result<(), UnpackError> {
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records).map_err(UnpackError::Tar)?;
        }
        header.set_cksum();
        self.tar.append(&header, content).map_err(UnpackError::Tar)
    }
}

/// Formats a time as PAX does: a decimal number, whose fraction has the sign of the whole.
fn decimal(sec: i64, nsec: u32) -> String {
    match (sec, nsec) {
        (sec, nsec) if sec >= 0 || nsec == 0 => format!("{sec}.{nsec:09}"),
        // `sec` is rounded down.
        (sec, nsec) => format!("-{}.{:09}", -(sec + 1), 1_000_000_000 - nsec),
    }
}

/// Restores the error of a layer that the tar library has passed on as an I/O error.
fn read_error(error: UnpackError, path: &[u8]) -> UnpackError {
    match error {
        UnpackError::Tar(error) => match error.downcast::<ReadError>() {
            Ok(source) => UnpackError::Read { path: PathBuf::from(OsStr::from_bytes(path)), source },
            Err(error) => UnpackError::Tar(error),
        },
        error => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_are_decimal_numbers() {
        for (sec, nsec, text) in [
            (1, 5, "1.000000005"),
            (-1, 0, "-1.000000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-1, 999_999_999, "-0.000000001"),
        ] {
            assert_eq!(decimal(sec, nsec), text);
        }
    }
}
