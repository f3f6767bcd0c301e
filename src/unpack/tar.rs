//! Writes a plan as a tar, in the format of GNU tar with PAX records for what its headers cannot hold.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use tar::EntryType;

use super::attributes::NodeAttributes;
use super::{DirectoryNo, FileReader, PlanName, UnpackError, UnpackOptions, UnpackPlan};
use crate::index::{IndexedKind, Layer, ReadError};
use crate::layer::{MemberWriter, NewMember};
use crate::tree::{IMPLIED_MTIME, NodeSource};

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
    let mut writer =
        TarWriter { layers, options, tar: MemberWriter::new(out), reader: FileReader::default() };
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
    writer.tar.finish().and_then(|mut out| out.flush()).map_err(UnpackError::Tar)
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
    tar: MemberWriter<W>,
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
        self.append(member(EntryType::Directory, &path), attributes, 0, io::empty())
    }

    fn node(&mut self, path: &[u8], source: NodeSource) -> Result<(), UnpackError> {
        let NodeSource::Entry { layer, entry: id } = source else { return Ok(()) };
        let layers = self.layers;
        let layer = layers[layer.index()];
        let entry = layer.index().entry(id);
        let attributes = NodeAttributes::of_entry(&entry);
        let member = match entry.kind() {
            IndexedKind::Regular { size } => {
                let mut reader = std::mem::take(&mut self.reader);
                let content = reader.stream(layer, id);
                let result = self.append(member(EntryType::Regular, path), attributes, size, content);
                self.reader = reader;
                return result.map_err(|error| read_error(error, path));
            }
            IndexedKind::Symlink { target } => NewMember { target, ..member(EntryType::Symlink, path) },
            IndexedKind::CharDevice { major, minor } => {
                NewMember { device: Some((major, minor)), ..member(EntryType::Char, path) }
            }
            IndexedKind::BlockDevice { major, minor } => {
                NewMember { device: Some((major, minor)), ..member(EntryType::Block, path) }
            }
            IndexedKind::Fifo => member(EntryType::Fifo, path),
            IndexedKind::Directory | IndexedKind::Hardlink { .. } => {
                unreachable!("a plan has no nodes for directories and hard links")
            }
        };
        self.append(member, attributes, 0, io::empty())
    }

    fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), UnpackError> {
        let member = NewMember { target, ..member(EntryType::Link, path) };
        self.append(member, NodeAttributes::implied(), 0, io::empty())
    }

    /// Appends a member with these attributes, as far as the options keep them.
    fn append(
        &mut self,
        member: NewMember<'_>,
        attributes: NodeAttributes<'_>,
        size: u64,
        content: impl Read,
    ) -> Result<(), UnpackError> {
        let attributes = self.options.apply(attributes);
        let NodeAttributes { mode, uid, gid, mtime, .. } = attributes;
        let member = NewMember { mode, uid, gid, mtime, ..member };
        self.tar.append(&member, attributes.xattrs(), size, content).map_err(UnpackError::Tar)
    }
}

/// A member without its attributes.
fn member(kind: EntryType, path: &[u8]) -> NewMember<'_> {
    NewMember { kind, path, target: b"", mode: 0, uid: 0, gid: 0, mtime: IMPLIED_MTIME, device: None }
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
