//! The filesystem as an ordinary struct: each request is a method, and each answer a plain value.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::answers::{DirEntry, FsStatus, Lookup, StatFs};
use super::attr::{FileKind, InodeAttr, NO_TIME};
use super::content::{ContentReader, FileBytes};
use super::resolve::{InodeSource, Resolver, decode, image_ino};
use super::{
    ContentFault, DecodedIno, FsError, ImageSource, Ino, LayerFiles, LoadError, NameTarget, Namespace,
    NamespaceChanges, NamespaceDirectory, NamespaceNode, SpanCache,
};
use crate::index::{IndexedKind, Piece};
use crate::os::ignore_poison;
use crate::tree::NodeId;

/// Longest name, in bytes. Names in tars and references have the same limit.
pub const NAME_MAX: usize = 255;

/// Settings of an [`ImageFs`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsOptions {
    /// Size of the cache of decoded spans, in bytes.
    pub cache_bytes: u64,
    /// How long a read waits for another thread that decodes the same span.
    pub span_deadline: Duration,
    /// How long a lookup waits for another thread that opens the same image.
    pub image_deadline: Duration,
    /// Whether to decode ahead what is likely to be read next from layer files.
    pub prefetch: bool,
}

impl Default for FsOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 256 << 20,
            span_deadline: Duration::from_secs(30),
            image_deadline: Duration::from_secs(60),
            prefetch: true,
        }
    }
}

/// The mode of the mount's root: all users may list it, except its group, which has no members ([`NO_GROUP`]).
///
/// The kernel creates the root's inode before FUSE_INIT, and then never caches the root's ACL (`ACL_DONT_CACHE`,
/// `fuse_init_inode` in fs/fuse/inode.c): with mode 0555 it would send a GETXATTR for each path that a user other than root
/// opens. It asks for no ACL if the group has no permissions (`acl_permission_check`, fs/namei.c).
const ROOT_MODE: u16 = 0o505;
/// The highest valid group ID, which no user is a member of.
const NO_GROUP: u32 = u32::MAX - 1;

/// How long the failure to open an image is repeated without another attempt: one `ls` causes many requests.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// All published images as one tree of files.
#[derive(Debug)]
pub struct ImageFs {
    source: Arc<ImageSource>,
    resolver: Resolver,
    content: Arc<ContentReader>,
    prefetch: bool,
    /// Held during a refresh. Only another refresh waits for it.
    refreshing: Mutex<()>,
}

impl ImageFs {
    /// Creates a filesystem that is empty until its first [`ImageFs::refresh`].
    #[must_use]
    pub fn new(source: ImageSource, options: &FsOptions) -> Self {
        let source = Arc::new(source);
        let cache = SpanCache::new(options.cache_bytes, options.span_deadline);
        Self {
            resolver: Resolver::new(Arc::clone(&source), options.image_deadline, RETRY_AFTER),
            content: Arc::new(ContentReader::new(cache)),
            prefetch: options.prefetch,
            refreshing: Mutex::new(()),
            source,
        }
    }

    /// Returns the layers of the store as files. They share the open layers and the cache with this filesystem.
    #[must_use]
    pub fn layer_files(&self) -> LayerFiles {
        let (source, layers) = (Arc::clone(&self.source), Arc::clone(&self.resolver.layers));
        LayerFiles::new(source, layers, Arc::clone(&self.content), self.prefetch)
    }

    /// Shows the images that the store publishes now, and returns the names and directories that the kernel must forget.
    ///
    /// The caller must invalidate the kernel's caches before it reports that the change is visible. No request may wait for
    /// this invalidation.
    ///
    /// # Errors
    ///
    /// The store's references cannot be read. The previous namespace remains.
    pub fn refresh(&self) -> Result<NamespaceChanges, LoadError> {
        let _lock = ignore_poison(self.refreshing.lock());
        let (published, changed) = self.source.published()?;
        let old = self.namespace();
        let new = Arc::new(Namespace::new(&published, changed, Some(&old)));
        let changes = new.changes_since(&old);
        self.resolver.set_namespace(Arc::clone(&new));
        self.resolver.keep_unpublished(&old, &new);
        // A pull may have repaired an image without changing a reference.
        self.resolver.images.forget_failures();
        Ok(changes)
    }

    /// Returns the current namespace.
    #[must_use]
    pub fn namespace(&self) -> Arc<Namespace> {
        self.resolver.namespace()
    }

    /// Returns the state of the filesystem.
    #[must_use]
    pub fn status(&self) -> FsStatus {
        let namespace = self.namespace();
        let (open, failed) = self.resolver.images.states();
        FsStatus {
            published: namespace.image_count(),
            open: open.into_iter().map(|slot| namespace.path_of(slot)).collect(),
            failed: failed.into_iter().map(|(_, reason)| reason).collect(),
            layers: self.resolver.layers.len(),
            cache: self.content.counters(),
        }
    }

    /// Notes that the kernel gets `count` references to an inode with an answer. Must be called before the answer is sent.
    ///
    /// The kernel refers to each inode that a lookup or a listing with attributes has returned, until it forgets it.
    pub fn add_references(&self, ino: Ino, count: u64) {
        if let Some(DecodedIno::Image { slot, .. }) = ino.decode() {
            self.resolver.images.add_references(slot, count);
        }
    }

    /// Notes that the kernel has dropped `count` references to an inode, and closes its image if it was the last one.
    pub fn forget(&self, ino: Ino, count: u64) {
        if let Some(DecodedIno::Image { slot, .. }) = ino.decode()
            && self.resolver.images.remove_references(slot, count)
            && self.resolver.images.opened(slot).is_some()
        {
            self.resolver.close_unused(None);
        }
    }

    /// Closes images and layers that nobody has used for a while. The next request for one of them opens it again, and gets
    /// the same inode numbers. To be called from time to time.
    pub fn close_unused(&self) {
        self.resolver.close_unused(None);
    }

    /// Drops all decoded spans from the cache.
    pub fn drop_caches(&self) {
        self.content.drop_caches();
    }

    /// Looks up `name` in the directory `parent`. Also answers `.` and `..`, which the kernel looks up for file handles.
    ///
    /// # Errors
    ///
    /// `parent` is not a directory of this mount, or the image that `parent` or the name belongs to cannot be opened.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Lookup, FsError> {
        match name {
            b"." => return self.getattr(parent).map(Lookup::Found),
            b".." => return self.getattr(self.parent(parent)?).map(Lookup::Found),
            name if name.len() > NAME_MAX => return Err(FsError::NameTooLong),
            _ => {}
        }
        match decode(parent)? {
            DecodedIno::Namespace(_) => {
                let namespace = self.namespace();
                match directory(&namespace, parent)?.lookup(name) {
                    None => Ok(Lookup::Absent { cacheable: false }),
                    Some(NameTarget::Image(image)) => {
                        self.resolver.open_image(image)?.attr(NodeId::ROOT).map(Lookup::Found)
                    }
                    Some(NameTarget::Directory(ino) | NameTarget::Symlink(ino)) => {
                        namespace_attr(&namespace, ino).map(Lookup::Found)
                    }
                }
            }
            DecodedIno::Image { slot, node } => {
                let open = self.resolver.image_by_slot(slot, parent)?;
                match open.tree.lookup(open.directory(node, parent)?, name) {
                    None => Ok(Lookup::Absent { cacheable: true }),
                    Some(node) => open.attr(node).map(Lookup::Found),
                }
            }
            DecodedIno::Layer { .. } => Err(FsError::NotADirectory(parent)),
        }
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    ///
    /// There is no such inode, or its image or layer cannot be opened.
    pub fn getattr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        match decode(ino)? {
            DecodedIno::Namespace(_) => namespace_attr(&self.namespace(), ino),
            DecodedIno::Layer { .. } | DecodedIno::Image { .. } => self.resolver.inode(ino)?.attr(),
        }
    }

    /// Passes the entries of a directory after `offset` (0: from the start) to `sink`, until `sink` returns true because
    /// it is full.
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
        let decoded = decode(ino)?;
        if let DecodedIno::Layer { .. } = decoded {
            return Err(FsError::NotADirectory(ino));
        }
        let number_only = |ino| InodeAttr::directory(ino, 2, NO_TIME);
        for (at, name) in [(0, &b"."[..]), (1, b"..")] {
            if offset <= at {
                let ino = if at == 0 { ino } else { self.parent(ino)? };
                if sink(DirEntry { name, next: at + 1, attr: number_only(ino), attr_complete: false }) {
                    return Ok(());
                }
            }
        }
        match decoded {
            DecodedIno::Layer { .. } => {}
            DecodedIno::Namespace(_) => {
                let namespace = self.namespace();
                for (next, name, target) in directory(&namespace, ino)?.listed_after(offset) {
                    let (attr, attr_complete) = match target {
                        NameTarget::Directory(ino) | NameTarget::Symlink(ino) => {
                            (namespace_attr(&namespace, ino)?, true)
                        }
                        // A listing does not open images.
                        NameTarget::Image(image) => match self.resolver.images.opened(image.slot) {
                            Some(open) => (open.attr(NodeId::ROOT)?, true),
                            None => (number_only(image_ino(image.slot, NodeId::ROOT)?), false),
                        },
                    };
                    if sink(DirEntry { name: name.as_bytes(), next, attr, attr_complete }) {
                        return Ok(());
                    }
                }
            }
            DecodedIno::Image { slot, node } => {
                let open = self.resolver.image_by_slot(slot, ino)?;
                let node = open.directory(node, ino)?;
                let mut index = usize::try_from(offset.saturating_sub(DOTS)).map_err(|_| FsError::Invalid)?;
                while let Some((name, child)) = open.tree.child_at(node, index) {
                    index += 1;
                    let attr = open.attr(child)?;
                    if sink(DirEntry { name, next: DOTS + index as u64, attr, attr_complete: true }) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// The inode is not a symbolic link, or its image or layer cannot be opened.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        if let DecodedIno::Namespace(_) = decode(ino)? {
            return match self.namespace().node(ino) {
                Some(NamespaceNode::Symlink(link)) => Ok(link.target().as_bytes().to_vec()),
                Some(NamespaceNode::Directory(_)) => Err(FsError::WrongKind(ino)),
                None => Err(FsError::Stale(ino)),
            };
        }
        match self.resolver.inode(ino)? {
            InodeSource::Entry(inode) => match inode.kind() {
                IndexedKind::Symlink { target } => Ok(target.to_vec()),
                _ => Err(FsError::WrongKind(ino)),
            },
            InodeSource::Implied(_) => Err(FsError::WrongKind(ino)),
        }
    }

    /// Reads up to `len` bytes of a regular file from `offset` on, fewer only at its end. Blocks while spans are decoded.
    ///
    /// # Errors
    ///
    /// The inode is not a regular file, or its content cannot be read or does not match its checksum. Never returns wrong
    /// bytes.
    pub fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<FileBytes, FsError> {
        let inode = self.resolver.regular_file(ino)?;
        let (slot, layer) = inode.layer;
        // An image keeps the layer handles that it was opened with. A handle may have been replaced since.
        let layer = self.resolver.layers.opened(slot).unwrap_or(layer);
        let read = |layer| self.content.read(&(slot, layer), inode.entry, offset, len);
        let result = match read(Arc::clone(&layer)) {
            Err(fault) => match self.resolver.layers.replacement(slot, &layer) {
                Some(layer) => read(layer),
                None => Err(fault),
            },
            bytes => bytes,
        };
        result.map_err(|fault| {
            let image = match ino.decode() {
                Some(DecodedIno::Image { slot, .. }) => self.namespace().path_of(slot),
                _ => None,
            };
            let path = layer.index().entry(inode.entry).path();
            let path = String::from_utf8_lossy(&path).into_owned();
            FsError::from(Box::new(ContentFault { path, layer: *layer.index().layer(), image, fault }))
        })
    }

    /// Returns the first offset at or after `offset` that is in a hole (`hole`) or in data.
    ///
    /// # Errors
    ///
    /// The inode is not a regular file, or there is no such offset.
    pub fn seek(&self, ino: Ino, offset: u64, hole: bool) -> Result<u64, FsError> {
        let inode = self.resolver.regular_file(ino)?;
        let IndexedKind::Regular { size } = inode.kind() else {
            return Err(FsError::WrongKind(ino));
        };
        if offset >= size {
            return Err(FsError::PastEnd);
        }
        let (_, layer) = &inode.layer;
        let mut at = offset;
        for piece in layer.pieces_from(inode.entry, offset, size - offset) {
            let (is_hole, len) = match piece {
                Piece::Hole { len } => (true, len),
                Piece::Data { len, .. } => (false, len),
            };
            if is_hole == hole {
                return Ok(at);
            }
            at += len;
        }
        // Every file ends with a virtual hole (lseek(2)).
        if hole { Ok(size) } else { Err(FsError::PastEnd) }
    }

    /// Returns the value of an extended attribute.
    ///
    /// # Errors
    ///
    /// The inode does not have this attribute, or its image or layer cannot be opened.
    pub fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let mut value = None;
        self.for_each_xattr(ino, |found, bytes| {
            if found == name {
                value = Some(bytes.to_vec());
            }
        })?;
        value.ok_or(FsError::NoAttribute)
    }

    /// Returns the names of all extended attributes, each terminated by a NUL byte (listxattr(2)).
    ///
    /// # Errors
    ///
    /// There is no such inode, or its image or layer cannot be opened.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        self.for_each_xattr(ino, |name, _| {
            names.extend_from_slice(name);
            names.push(0);
        })?;
        Ok(names)
    }

    /// Returns totals for statfs(2).
    #[must_use]
    pub fn statfs(&self) -> StatFs {
        self.resolver.layers.totals()
    }

    fn for_each_xattr(&self, ino: Ino, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), FsError> {
        if let DecodedIno::Namespace(_) = decode(ino)? {
            return namespace_attr(&self.namespace(), ino).map(drop);
        }
        if let InodeSource::Entry(inode) = self.resolver.inode(ino)? {
            let (_, layer) = &inode.layer;
            layer.index().entry(inode.entry).xattrs().for_each(|(name, value)| each(name, value));
        }
        Ok(())
    }

    fn parent(&self, ino: Ino) -> Result<Ino, FsError> {
        let namespace = self.namespace();
        match decode(ino)? {
            DecodedIno::Namespace(_) => directory(&namespace, ino).map(NamespaceDirectory::parent),
            DecodedIno::Image { slot, node } => {
                let open = self.resolver.image_by_slot(slot, ino)?;
                match open.directory(node, ino)? {
                    // The parent of an image that is in use but has lost its names is the root.
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
            let attr = InodeAttr::directory(ino, directory.nlink(), directory.mtime());
            Ok(if ino == Ino::ROOT { InodeAttr { mode: ROOT_MODE, gid: NO_GROUP, ..attr } } else { attr })
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
