//! Writes a plan to disk: directories, then all other files in parallel, then hard links, whiteouts, and last the attributes
//! of directories.
//!
//! The attributes of directories come last because writing in a directory changes its times, and its mode may deny access even
//! to its owner. Until then directories have mode 0700, so that no other user sees a file before its owner and mode are set.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};

use super::attributes::NodeAttributes;
use super::content::{DecodeUnit, SpanPart, decode_units};
use super::directories::{DirCache, TargetDirs};
use super::{PlanName, PlanNode, UnpackError, UnpackPlan};
use crate::index::{Entry, EntryId, IndexedKind, Layer};
use crate::os::{PathError, ignore_poison};
use crate::tree::NodeSource;

/// The extended attribute of an opaque directory: it hides the content of the directory in lower layers (overlayfs.rst,
/// "whiteouts and opaque directories").
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// Modes of directories and files whose attributes are not set yet.
const UNREADY_DIRECTORY: Mode = Mode::RWXU;
const UNREADY_FILE: Mode = Mode::from_raw_mode(0o600);

/// Options of [`write()`].
#[derive(Clone, Copy)]
pub struct UnpackOptions<'a> {
    /// Number of threads that decode and write; at least one.
    pub threads: usize,
    /// Called on any thread with the number of content bytes written since the last call.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
    /// Whether to leave out set-uid and set-gid bits and file capabilities. Without it, the copy is exact.
    pub without_setuid: bool,
    /// Whether files keep the owner that writes them, instead of the image's owners. Leaves out extended attributes too.
    pub without_owners: bool,
    /// Set by the caller to cancel the operation.
    pub cancel: Option<&'a AtomicBool>,
}

impl fmt::Debug for UnpackOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnpackOptions").field("threads", &self.threads).finish_non_exhaustive()
    }
}

impl Default for UnpackOptions<'_> {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads, progress: None, without_setuid: false, without_owners: false, cancel: None }
    }
}

impl UnpackOptions<'_> {
    /// Leaves out of a node's attributes what the options exclude.
    pub(super) fn apply<'a>(&self, exact: NodeAttributes<'a>) -> NodeAttributes<'a> {
        let kept = if self.without_setuid { exact.without_setuid() } else { exact };
        if self.without_owners { kept.without_owner() } else { kept }
    }
}

/// The amount of files and bytes written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackStats {
    /// Number of directories, including the root.
    pub directories: u64,
    /// Number of all other files; hard links count once.
    pub nodes: u64,
    /// Total size of the content in bytes.
    pub bytes: u64,
}

/// Writes a plan into the empty directory `root`; `path` is its path for messages.
///
/// The caller must make the directory with mode 0700, and rename it to its final name only after this has succeeded.
///
/// # Errors
///
/// The first error of any thread. The content of the directory is then incomplete.
pub fn write<D: AsRef<[u8]> + Sync + Send>(
    plan: &UnpackPlan,
    layers: &[&Layer<D>],
    root: BorrowedFd<'_>,
    path: &Path,
    options: &UnpackOptions<'_>,
) -> Result<UnpackStats, UnpackError> {
    let target = TargetDirs::new(plan, root, path);
    target.make_all(UNREADY_DIRECTORY)?;
    let writer = TreeWriter {
        plan,
        layers,
        target: &target,
        options,
        files: plan.nodes.iter().map(|_| PartCount::default()).collect(),
        open: Mutex::new(HashMap::new()),
        failed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
    };
    writer.write_nodes()?;
    writer.link_names()?;
    writer.write_whiteouts()?;
    writer.finish_directories()?;
    Ok(UnpackStats {
        directories: plan.directories.len() as u64,
        nodes: plan.nodes.len() as u64,
        bytes: writer.bytes.into_inner(),
    })
}

/// The number of parts of a file, and of those that are not written yet.
#[derive(Debug, Default)]
struct PartCount {
    all: AtomicU32,
    remaining: AtomicU32,
}

struct TreeWriter<'a, D> {
    plan: &'a UnpackPlan,
    layers: &'a [&'a Layer<D>],
    target: &'a TargetDirs<'a>,
    options: &'a UnpackOptions<'a>,
    /// The parts of each node.
    files: Vec<PartCount>,
    /// Open files that have several parts, by node.
    open: Mutex<HashMap<u32, Arc<File>>>,
    failed: AtomicBool,
    bytes: AtomicU64,
}

/// A unit of work for one thread.
enum WorkItem {
    /// Spans, and the parts of files in them.
    Content(DecodeUnit),
    /// Indexes of nodes without content.
    Nodes(Vec<u32>),
}

/// Number of nodes without content in one unit of work.
const NODES_PER_ITEM: usize = 256;

impl<D: AsRef<[u8]> + Sync + Send> TreeWriter<'_, D> {
    /// Creates all nodes under their first names.
    fn write_nodes(&self) -> Result<(), UnpackError> {
        let work = self.divide_work();
        let next = AtomicUsize::new(0);
        let take = || {
            if self.failed.load(Ordering::Relaxed) {
                return None;
            }
            work.get(next.fetch_add(1, Ordering::Relaxed))
        };
        let run = || {
            let mut directories = self.target.cache();
            while let Some(work) = take() {
                let result = match work {
                    WorkItem::Content(unit) => self.write_unit(unit, &mut directories),
                    WorkItem::Nodes(nodes) => {
                        nodes.iter().try_for_each(|node| self.make_node(*node, &mut directories))
                    }
                };
                if let Err(error) = result {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let threads = self.options.threads.clamp(1, work.len().max(1));
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
            let mut result = run();
            for other in others {
                let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // Prefer the original error to `Interrupted` of the threads that it stopped.
                if matches!(result, Ok(()) | Err(UnpackError::Interrupted)) && other.is_err() {
                    result = other;
                }
            }
            result
        })
    }

    /// Divides the nodes into units of work, and counts the parts of each file.
    fn divide_work(&self) -> Vec<WorkItem> {
        let mut by_layer: Vec<Vec<(u32, EntryId)>> = vec![Vec::new(); self.layers.len()];
        let mut without_content: Vec<u32> = Vec::new();
        for (number, node) in (0..).zip(&self.plan.nodes) {
            let NodeSource::Entry { layer, entry } = node.source else { continue };
            if self.layers[layer.index()].stored_size(entry) > 0 {
                by_layer[layer.index()].push((number, entry));
            } else {
                without_content.push(number);
            }
        }
        let mut work: Vec<WorkItem> = Vec::new();
        for (number, files) in by_layer.iter().enumerate().filter(|(_, files)| !files.is_empty()) {
            let (units, counts) = decode_units(self.layers[number], number, files);
            for ((file, _), parts) in files.iter().zip(counts) {
                self.files[*file as usize].all.store(parts, Ordering::Relaxed);
                self.files[*file as usize].remaining.store(parts, Ordering::Relaxed);
            }
            work.extend(units.into_iter().map(WorkItem::Content));
        }
        work.extend(without_content.chunks(NODES_PER_ITEM).map(|nodes| WorkItem::Nodes(nodes.to_vec())));
        work
    }

    fn write_unit(&self, unit: &DecodeUnit, directories: &mut DirCache) -> Result<(), UnpackError> {
        let layer = self.layers[unit.layer];
        for needed in &unit.spans {
            self.check_interrupted()?;
            let first = needed.parts[0].file;
            let bytes = layer
                .decode_span(needed.span)
                .map_err(|source| UnpackError::Read { path: self.path_of(first), source })?;
            let mut written = 0;
            for part in &needed.parts {
                self.write_part(part, &bytes, directories)?;
                written += part.len as u64;
            }
            self.bytes.fetch_add(written, Ordering::Relaxed);
            if let Some(progress) = self.options.progress {
                progress(written);
            }
        }
        Ok(())
    }

    /// Fails if the caller cancelled the operation or another thread failed.
    fn check_interrupted(&self) -> Result<(), UnpackError> {
        let cancelled = self.options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        if cancelled || self.failed.load(Ordering::Relaxed) {
            return Err(UnpackError::Interrupted);
        }
        Ok(())
    }

    fn write_part(
        &self,
        part: &SpanPart,
        span: &[u8],
        directories: &mut DirCache,
    ) -> Result<(), UnpackError> {
        let failed = |error| PathError::new("write", self.path_of(part.file), error);
        let content = &span[part.start..part.start + part.len];
        let count = &self.files[part.file as usize];
        // Most files have one part and are used by one thread only.
        if count.all.load(Ordering::Relaxed) == 1 {
            let file = self.create(part.file, directories)?;
            file.write_all_at(content, part.offset).map_err(failed)?;
            return self.finish_file(part.file, &file);
        }
        let file = self.create_shared(part.file, directories)?;
        file.write_all_at(content, part.offset).map_err(failed)?;
        if count.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
            ignore_poison(self.open.lock()).remove(&part.file);
            self.finish_file(part.file, &file)?;
        }
        Ok(())
    }

    fn create_shared(&self, file: u32, directories: &mut DirCache) -> Result<Arc<File>, UnpackError> {
        let mut open = ignore_poison(self.open.lock());
        if let Some(file) = open.get(&file) {
            return Ok(Arc::clone(file));
        }
        let created = Arc::new(self.create(file, directories)?);
        open.insert(file, Arc::clone(&created));
        Ok(created)
    }

    /// Creates an empty regular file.
    fn create(&self, file: u32, directories: &mut DirCache) -> Result<File, UnpackError> {
        let place = self.first_name(file);
        let directory = directories.open(self.target, place.directory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, &*place.name, flags, UNREADY_FILE)
            .map(File::from)
            .map_err(|errno| UnpackError::new("create", self.path_of(file), errno))
    }

    /// Sets the length of a regular file, which may end in a hole, and its attributes.
    fn finish_file(&self, number: u32, file: &File) -> Result<(), UnpackError> {
        let (entry, size) = self.entry(number);
        let Some(size) = size else { return Ok(()) };
        rustix::fs::ftruncate(file, size)
            .map_err(|errno| UnpackError::new("set the length of", self.path_of(number), errno))?;
        self.attributes(&entry).set(file.as_fd(), || self.path_of(number))
    }

    /// Creates a node that has no content.
    fn make_node(&self, number: u32, directories: &mut DirCache) -> Result<(), UnpackError> {
        self.check_interrupted()?;
        let (entry, size) = self.entry(number);
        if size.is_some() {
            let file = self.create(number, directories)?;
            return self.finish_file(number, &file);
        }
        let place = self.first_name(number);
        let directory = directories.open(self.target, place.directory)?;
        let directory = directory.as_fd();
        let name = &*place.name;
        let failed = |errno| UnpackError::new("create", self.path_of(number), errno);
        match entry.kind() {
            IndexedKind::Symlink { target } => {
                rustix::fs::symlinkat(target, directory, name).map_err(failed)?
            }
            IndexedKind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(directory, name, FileType::CharacterDevice, UNREADY_FILE, device)
                    .map_err(failed)?;
            }
            IndexedKind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(directory, name, FileType::BlockDevice, UNREADY_FILE, device)
                    .map_err(failed)?;
            }
            IndexedKind::Fifo => {
                rustix::fs::mknodat(directory, name, FileType::Fifo, UNREADY_FILE, 0).map_err(failed)?;
            }
            IndexedKind::Directory | IndexedKind::Regular { .. } | IndexedKind::Hardlink { .. } => {
                unreachable!("a plan has no nodes for directories and hard links; regular files return above")
            }
        }
        let is_symlink = matches!(entry.kind(), IndexedKind::Symlink { .. });
        self.attributes(&entry).set_at(directory, name, is_symlink, || self.path_of(number))
    }

    /// Makes the hard links.
    fn link_names(&self) -> Result<(), UnpackError> {
        let (mut from, mut to) = (self.target.cache(), self.target.cache());
        for node in &self.plan.nodes {
            let Some((first, others)) = node.names.split_first() else { continue };
            for other in others {
                self.check_interrupted()?;
                let from = from.open(self.target, first.directory)?;
                let to = to.open(self.target, other.directory)?;
                rustix::fs::linkat(from, &*first.name, to, &*other.name, AtFlags::empty())
                    .map_err(|errno| UnpackError::new("link", self.target.path(other), errno))?;
            }
        }
        Ok(())
    }

    fn write_whiteouts(&self) -> Result<(), UnpackError> {
        let mut directories = self.target.cache();
        for name in &self.plan.whiteouts {
            self.check_interrupted()?;
            let directory = directories.open(self.target, name.directory)?;
            rustix::fs::mknodat(directory, &*name.name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|errno| UnpackError::new("create whiteout", self.target.path(name), errno))?;
        }
        Ok(())
    }

    fn finish_directories(&self) -> Result<(), UnpackError> {
        // Children first: the mode of a parent may forbid opening them.
        for (number, planned) in self.plan.numbered().rev() {
            self.check_interrupted()?;
            let path = || self.target.path(&planned.place);
            let directory = self.target.open(number)?;
            if planned.opaque {
                rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty())
                    .map_err(|errno| UnpackError::new("mark as opaque", path(), errno))?;
            }
            match planned.source {
                NodeSource::Implied => {
                    self.options.apply(NodeAttributes::implied()).set(directory.as_fd(), path)?;
                }
                NodeSource::Entry { layer, entry } => {
                    let entry = self.layers[layer.index()].index().entry(entry);
                    self.attributes(&entry).set(directory.as_fd(), path)?;
                }
            }
        }
        Ok(())
    }

    fn attributes<'e>(&self, entry: &'e Entry<'e>) -> NodeAttributes<'e> {
        self.options.apply(NodeAttributes::of_entry(entry))
    }

    fn node(&self, number: u32) -> &PlanNode {
        &self.plan.nodes[number as usize]
    }

    fn first_name(&self, number: u32) -> &PlanName {
        &self.node(number).names[0]
    }

    /// Returns the entry of a node, and its size if it is a regular file.
    fn entry(&self, number: u32) -> (Entry<'_>, Option<u64>) {
        let NodeSource::Entry { layer, entry } = self.node(number).source else {
            unreachable!("only directories have no entry")
        };
        let entry = self.layers[layer.index()].index().entry(entry);
        match entry.kind() {
            IndexedKind::Regular { size } => (entry, Some(size)),
            _ => (entry, None),
        }
    }

    fn path_of(&self, number: u32) -> PathBuf {
        self.target.path(self.first_name(number))
    }
}
