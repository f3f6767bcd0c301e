//! The filesystem as an ordinary struct: every request is a method, every answer a plain value.
//!
//! Lock order: the namespace's lock is held for a copy of its `Arc` only, and never while anything is opened or read.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use super::answers::{DirEntry, FsStatus, Lookup, StatFs};
use super::attr::{FileKind, InodeAttr};
use super::content::{ContentReader, FileBytes};
use super::images::ImageTable;
use super::resolve::{
    EntryInode, InodeSource, ServedImage, ServedLayer, directory_node, image_ino, image_root,
};
use super::source::ImageSource;
use super::{
    DecodedIno, FsError, Ino, NameTarget, Namespace, NamespaceChanges, NamespaceDirectory, NamespaceNode,
    SpanCache,
};
use crate::index::{Kind, Piece};
use crate::tree::NodeId;

/// Longest name that a lookup can have: what tars and references are limited to.
pub const NAME_MAX: usize = 255;

/// Settings of an [`ImageFs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsOptions {
    /// Bytes of decoded spans that are kept.
    pub cache_bytes: u64,
    /// For how long a read waits for another one's decode of the same span.
    pub span_deadline: Duration,
    /// For how long a lookup waits for another one's opening of the same image.
    pub image_deadline: Duration,
    /// Whether the span behind a forward reader's is decoded before it is asked for. The kernel asks ahead too, so this
    /// pays only where processors are idle: not by default.
    pub read_ahead: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            span_deadline: Duration::from_secs(30),
            image_deadline: Duration::from_secs(60),
            read_ahead: false,
        }
    }
}

/// For how long the failure to open an image is told without another try: one `ls` asks many times.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All published images as one tree of files.
#[derive(Debug)]
pub struct ImageFs {
    pub(super) source: ImageSource,
    namespace: RwLock<Arc<Namespace>>,
    /// Held through a refresh, which nothing but another refresh waits for.
    refreshing: Mutex<()>,
    pub(super) images: ImageTable<ServedImage>,
    pub(super) layers: RwLock<HashMap<u32, ServedLayer>>,
    content: ContentReader,
}

impl ImageFs {
    /// Makes a filesystem that shows nothing before its first [`ImageFs::refresh`].
    #[must_use]
    pub fn new(source: ImageSource, options: &FsOptions) -> Self {
        let cache = SpanCache::new(options.cache_bytes, options.span_deadline);
        Self {
            source,
            namespace: RwLock::new(Arc::new(Namespace::default())),
            refreshing: Mutex::new(()),
            images: ImageTable::new(options.image_deadline, RETRY_AFTER),
            layers: RwLock::new(HashMap::new()),
            content: ContentReader::new(cache, options.read_ahead),
        }
    }

    /// Shows what is published now. The caller has the kernel forget what the answer says, before it tells anyone that
    /// the change can be seen; no handler waits for that.
    ///
    /// # Errors
    ///
    /// That the store's references cannot be read; what was shown stays.
    pub fn refresh(&self) -> Result<NamespaceChanges, super::LoadError> {
        let _one = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let (published, changed) = self.source.published()?;
        let old = self.namespace();
        let new = Arc::new(Namespace::new(&published, changed, Some(&old)));
        let changes = new.changes_since(&old);
        *self.namespace.write().unwrap_or_else(PoisonError::into_inner) = new;
        // A pull may have mended an image without changing a reference.
        self.images.forget_failures();
        Ok(changes)
    }

    /// The names that are shown now.
    #[must_use]
    pub fn namespace(&self) -> Arc<Namespace> {
        Arc::clone(&self.namespace.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the filesystem holds.
    #[must_use]
    pub fn status(&self) -> FsStatus {
        let namespace = self.namespace();
        let (open, failed) = self.images.states();
        FsStatus {
            published: namespace.image_count(),
            open: open.into_iter().map(|slot| namespace.path_of(slot)).collect(),
            failed: failed.into_iter().map(|(_, reason)| reason).collect(),
            layers: self.layers.read().unwrap_or_else(PoisonError::into_inner).len(),
            cache: self.content.counters(),
        }
    }

    /// Forgets decoded spans, as if they had never been read.
    pub fn drop_caches(&self) {
        self.content.drop_caches();
    }

    /// What `name` in the directory `parent` stands for. `.` and `..` are answered too: file handles ask for them.
    ///
    /// # Errors
    ///
    /// `parent` is not a directory of this mount, or the image that it or the name belongs to cannot be opened.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Lookup, FsError> {
        match name {
            b"." => return self.getattr(parent).map(Lookup::Found),
            b".." => return self.getattr(self.parent(parent)?).map(Lookup::Found),
            name if name.len() > NAME_MAX => return Err(FsError::NameTooLong),
            _ => {}
        }
        match self.place(parent)? {
            DecodedIno::Namespace(_) => {
                let namespace = self.namespace();
                match directory(&namespace, parent)?.lookup(name) {
                    // A pull may give it a meaning at any time.
                    None => Ok(Lookup::Absent { lasting: false }),
                    Some(NameTarget::Image(image)) => {
                        let open = self.open(image)?;
                        self.attr(&open, NodeId::ROOT).map(Lookup::Found)
                    }
                    Some(NameTarget::Directory(ino) | NameTarget::Symlink(ino)) => {
                        namespace_attr(&namespace, ino).map(Lookup::Found)
                    }
                }
            }
            DecodedIno::Image { slot, node } => {
                let open = self.open_slot(slot, parent)?;
                match open.tree.lookup(directory_node(&open, node, parent)?, name) {
                    // Nothing comes into an image.
                    None => Ok(Lookup::Absent { lasting: true }),
                    Some(node) => self.attr(&open, node).map(Lookup::Found),
                }
            }
            DecodedIno::Layer { .. } => Err(FsError::NotADirectory(parent)),
        }
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    ///
    /// It stands for nothing, or what it belongs to cannot be opened.
    pub fn getattr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        match self.place(ino)? {
            DecodedIno::Namespace(_) => namespace_attr(&self.namespace(), ino),
            DecodedIno::Layer { .. } | DecodedIno::Image { .. } => match self.made(ino)? {
                InodeSource::Entry(found) => found.attr(),
                InodeSource::Implied(attr) => Ok(attr),
            },
        }
    }

    /// Gives `sink` the names of a directory behind `offset` (0: from the start) until it answers that it is full.
    ///
    /// # Errors
    ///
    /// `ino` is not a directory of this mount, or its image cannot be opened.
    pub fn readdir(
        &self,
        ino: Ino,
        offset: u64,
        mut sink: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        const DOTS: u64 = 2;
        let place = self.place(ino)?;
        if let DecodedIno::Layer { .. } = place {
            return Err(FsError::NotADirectory(ino));
        }
        let attr_of = |ino| InodeAttr::directory(ino, 2, super::attr::NO_TIME);
        for (at, name) in [(0, &b"."[..]), (1, b"..")] {
            if offset <= at {
                let ino = if at == 0 { ino } else { self.parent(ino)? };
                if sink(DirEntry { name, next: at + 1, attr: attr_of(ino), attr_lasts: false }) {
                    return Ok(());
                }
            }
        }
        match place {
            DecodedIno::Layer { .. } => {}
            DecodedIno::Namespace(_) => {
                let namespace = self.namespace();
                for (next, name, target) in directory(&namespace, ino)?.listed_after(offset) {
                    let (attr, attr_lasts) = match target {
                        NameTarget::Directory(ino) | NameTarget::Symlink(ino) => {
                            (namespace_attr(&namespace, ino)?, true)
                        }
                        // A listing opens no image.
                        NameTarget::Image(image) => match self.images.opened(image.slot) {
                            Some(open) => (self.attr(&open, NodeId::ROOT)?, true),
                            None => (attr_of(image_root(image)?), false),
                        },
                    };
                    if sink(DirEntry { name: name.as_bytes(), next, attr, attr_lasts }) {
                        return Ok(());
                    }
                }
            }
            DecodedIno::Image { slot, node } => {
                let open = self.open_slot(slot, ino)?;
                let node = directory_node(&open, node, ino)?;
                let mut index = usize::try_from(offset.saturating_sub(DOTS)).map_err(|_| FsError::Invalid)?;
                while let Some((name, child)) = open.tree.child_at(node, index) {
                    index += 1;
                    let attr = self.attr(&open, child)?;
                    if sink(DirEntry { name, next: DOTS + index as u64, attr, attr_lasts: true }) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// What a symbolic link holds.
    ///
    /// # Errors
    ///
    /// It is none, or what it belongs to cannot be opened.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        if let DecodedIno::Namespace(_) = self.place(ino)? {
            return match self.namespace().node(ino) {
                Some(NamespaceNode::Symlink(link)) => Ok(link.target().as_bytes().to_vec()),
                Some(NamespaceNode::Directory(_)) => Err(FsError::WrongKind(ino)),
                None => Err(FsError::Stale(ino)),
            };
        }
        match self.made(ino)? {
            InodeSource::Entry(EntryInode { layer: (_, layer), entry, .. }) => {
                match layer.index().entry(entry).kind() {
                    Kind::Symlink { target } => Ok(target.to_vec()),
                    _ => Err(FsError::WrongKind(ino)),
                }
            }
            InodeSource::Implied(_) => Err(FsError::WrongKind(ino)),
        }
    }

    /// Up to `len` bytes of a regular file from `offset` on, fewer only at its end. Blocks while spans are decoded.
    ///
    /// # Errors
    ///
    /// It is not a regular file, or its bytes cannot be read or are not what was indexed. Never wrong bytes.
    pub fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<FileBytes, FsError> {
        let EntryInode { layer: (slot, layer), entry, .. } = self.regular(ino)?;
        // An image keeps the layers that it was opened with; since then one may have been mended.
        let layer = self.open_layer(slot).unwrap_or(layer);
        let read = |layer| self.content.read(ino, &(slot, layer), entry, offset, len);
        match read(Arc::clone(&layer)) {
            Err(FsError::Content(fault)) => match self.mended(slot, &layer) {
                Some(layer) => read(layer),
                None => Err(FsError::Content(fault)),
            },
            result => result,
        }
    }

    /// The first offset from `offset` on that is in a hole (`hole`) or in data.
    ///
    /// # Errors
    ///
    /// It is not a regular file, or there is none.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        let found = self.regular(ino)?;
        let (_, layer) = &found.layer;
        let Kind::Regular { size } = layer.index().entry(found.entry).kind() else {
            return Err(FsError::WrongKind(ino));
        };
        if offset >= size {
            return Err(FsError::BehindEnd);
        }
        let mut at = offset;
        for piece in layer.pieces_from(found.entry, offset, size - offset) {
            let (is_hole, len) = match piece {
                Piece::Hole { len } => (true, len),
                Piece::Data { len, .. } => (false, len),
            };
            if is_hole == hole {
                return Ok(at);
            }
            at += len;
        }
        // Behind the last byte of every file is a hole.
        if hole { Ok(size) } else { Err(FsError::BehindEnd) }
    }

    /// One extended attribute.
    ///
    /// # Errors
    ///
    /// There is none of that name.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let mut value = None;
        self.for_each_xattr(ino, |has, is| {
            if has == name {
                value = Some(is.to_vec());
            }
        })?;
        value.ok_or(FsError::NoAttribute)
    }

    /// The names of all extended attributes, each with a NUL behind it (listxattr(2)).
    ///
    /// # Errors
    ///
    /// The inode stands for nothing, or what it belongs to cannot be opened.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        self.for_each_xattr(ino, |name, _| {
            names.extend_from_slice(name);
            names.push(0);
        })?;
        Ok(names)
    }

    /// Figures for `statfs`.
    #[must_use]
    pub fn figures(&self) -> StatFs {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        let none = StatFs { bytes: 0, files: 0 };
        layers.values().fold(none, |sum, ServedLayer { layer, .. }| StatFs {
            bytes: sum.bytes.saturating_add(layer.index().tar_size()),
            files: sum.files.saturating_add(layer.index().len() as u64),
        })
    }

    fn for_each_xattr(&self, ino: Ino, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), FsError> {
        if let DecodedIno::Namespace(_) = self.place(ino)? {
            return namespace_attr(&self.namespace(), ino).map(drop);
        }
        if let InodeSource::Entry(EntryInode { layer: (_, layer), entry, .. }) = self.made(ino)? {
            layer.index().entry(entry).xattrs().for_each(|(name, value)| each(name, value));
        }
        Ok(())
    }

    pub(super) fn place(&self, ino: Ino) -> Result<DecodedIno, FsError> {
        ino.place().ok_or(FsError::Stale(ino))
    }

    fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        let namespace = self.namespace();
        match self.place(ino)? {
            DecodedIno::Namespace(_) => directory(&namespace, ino).map(NamespaceDirectory::parent),
            DecodedIno::Image { slot, node } => {
                let open = self.open_slot(slot, ino)?;
                match directory_node(&open, node, ino)? {
                    // An image without a name, still in use, hangs below the root.
                    NodeId::ROOT => Ok(namespace.home(slot).map_or(Ino::ROOT, |(parent, _)| parent)),
                    node => image_ino(slot, open.tree.parent(node)),
                }
            }
            DecodedIno::Layer { .. } => Err(FsError::NotADirectory(ino)),
        }
    }
}

fn directory(namespace: &Namespace, ino: Ino) -> Result<&NamespaceDirectory, FsError> {
    match namespace.node(ino) {
        Some(NamespaceNode::Directory(directory)) => Ok(directory),
        Some(NamespaceNode::Symlink(_)) => Err(FsError::NotADirectory(ino)),
        None => Err(FsError::Stale(ino)),
    }
}

fn namespace_attr(namespace: &Namespace, ino: Ino) -> Result<InodeAttr, FsError> {
    match namespace.node(ino) {
        Some(NamespaceNode::Directory(directory)) => {
            Ok(InodeAttr::directory(ino, directory.nlink(), directory.mtime()))
        }
        Some(NamespaceNode::Symlink(link)) => Ok(InodeAttr {
            kind: FileKind::Symlink,
            mode: 0o777,
            nlink: 1,
            size: link.target().len() as u64,
            blocks: 0,
            ..InodeAttr::directory(ino, 1, link.mtime())
        }),
        None => Err(FsError::Stale(ino)),
    }
}
