//! Carries a plan out: directories, then all else in parallel, then links, marks, and the directories' attributes.
//!
//! A directory's attributes come last: writing in it changes its times, and its mode may keep even its owner out. Until
//! then it is open to nobody but the caller, so that nobody else sees a file before it has its owner and mode.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::attributes::Attributes;
use super::content::{Part, Unit, units};
use super::directories::{Cache, Places};
use super::{PlanName, PlanNode, UnpackError, UnpackPlan};
use crate::index::{Entry, EntryId, Kind, Layer};
use crate::tree::Source;

/// Marks a directory of an overlay layer that hides what lower layers have in it (overlayfs.rst, "whiteouts and opaque
/// directories").
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// Mode of directories and files that are not ready.
const UNREADY_DIRECTORY: Mode = Mode::RWXU;
const UNREADY_FILE: Mode = Mode::from_raw_mode(0o600);

/// How a tree is written.
#[derive(Clone, Copy)]
pub struct UnpackOptions<'a> {
    /// Threads that decode and write; at least one.
    pub threads: usize,
    /// Takes the bytes of content written since it was called last; from any thread.
    pub progress: Option<&'a (dyn Fn(u64) + Sync)>,
    /// Set by the caller to call it off.
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
        Self { threads, progress: None, cancel: None }
    }
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnpackStats {
    /// Directories, the root among them.
    pub directories: u64,
    /// All else, each once however many names it has.
    pub nodes: u64,
    /// Bytes of content.
    pub bytes: u64,
}

/// Writes what is planned into an empty directory; `path` is what messages call it.
///
/// The caller makes the directory, keeps others out of it, and gives it its name only when this has succeeded.
///
/// # Errors
/// The first thing that went wrong on any thread. What is there then is incomplete.
pub fn write<D: AsRef<[u8]> + Sync + Send>(
    plan: &UnpackPlan,
    layers: &[&Layer<D>],
    root: BorrowedFd<'_>,
    path: &Path,
    options: &UnpackOptions<'_>,
) -> Result<UnpackStats, UnpackError> {
    let places = Places::new(plan, root, path);
    places.make_directories(UNREADY_DIRECTORY)?;
    let writer = Writer {
        plan,
        layers,
        places: &places,
        options,
        files: plan.nodes.iter().map(|_| Parts::default()).collect(),
        open: Mutex::new(HashMap::new()),
        failed: AtomicBool::new(false),
        bytes: AtomicU64::new(0),
    };
    writer.write_nodes()?;
    writer.link_names()?;
    writer.mark()?;
    writer.finish_directories()?;
    Ok(UnpackStats {
        directories: plan.directories.len() as u64,
        nodes: plan.nodes.len() as u64,
        bytes: writer.bytes.into_inner(),
    })
}

/// In how many parts a file comes, and how many of them are still to be written.
#[derive(Debug, Default)]
struct Parts {
    all: AtomicU32,
    left: AtomicU32,
}

struct Writer<'a, D> {
    plan: &'a UnpackPlan,
    layers: &'a [&'a Layer<D>],
    places: &'a Places<'a>,
    options: &'a UnpackOptions<'a>,
    /// By node.
    files: Vec<Parts>,
    /// Files of several parts that are being written.
    open: Mutex<HashMap<u32, Arc<File>>>,
    failed: AtomicBool,
    bytes: AtomicU64,
}

/// What a thread takes next.
enum Work {
    /// Spans, and the files that are in them.
    Content(Unit),
    /// Nodes without content: ordinals of the plan.
    Nodes(Vec<u32>),
}

/// Nodes without content that are made by one unit of work.
const NODES: usize = 256;

impl<D: AsRef<[u8]> + Sync + Send> Writer<'_, D> {
    /// Makes all nodes under their first names.
    fn write_nodes(&self) -> Result<(), UnpackError> {
        let work = self.divide();
        let next = AtomicUsize::new(0);
        let take = || {
            if self.failed.load(Ordering::Relaxed) {
                return None;
            }
            work.get(next.fetch_add(1, Ordering::Relaxed))
        };
        let run = || {
            let mut directories = self.places.cache();
            while let Some(work) = take() {
                let done = match work {
                    Work::Content(unit) => self.write_unit(unit, &mut directories),
                    Work::Nodes(nodes) => {
                        nodes.iter().try_for_each(|node| self.make_node(*node, &mut directories))
                    }
                };
                if let Err(error) = done {
                    self.failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        let threads = self.options.threads.clamp(1, work.len().max(1));
        std::thread::scope(|scope| {
            let helpers: Vec<_> = (1..threads).map(|_| scope.spawn(run)).collect();
            let mut result = run();
            for helper in helpers {
                let other = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                // What a thread met, not that another was told to stop.
                if matches!(result, Ok(()) | Err(UnpackError::Interrupted)) && other.is_err() {
                    result = other;
                }
            }
            result
        })
    }

    /// Divides the nodes into work; sets how many parts each file has.
    fn divide(&self) -> Vec<Work> {
        let mut by_layer: Vec<Vec<(u32, EntryId)>> = vec![Vec::new(); self.layers.len()];
        let mut bare: Vec<u32> = Vec::new();
        for (number, node) in (0..).zip(&self.plan.nodes) {
            let Source::Entry { layer, entry } = node.source else { continue };
            if self.layers[layer.index()].stored_size(entry) > 0 {
                by_layer[layer.index()].push((number, entry));
            } else {
                bare.push(number);
            }
        }
        let mut work: Vec<Work> = Vec::new();
        for (number, files) in by_layer.iter().enumerate().filter(|(_, files)| !files.is_empty()) {
            let (units, counts) = units(self.layers[number], number, files);
            for ((file, _), parts) in files.iter().zip(counts) {
                self.files[*file as usize].all.store(parts, Ordering::Relaxed);
                self.files[*file as usize].left.store(parts, Ordering::Relaxed);
            }
            work.extend(units.into_iter().map(Work::Content));
        }
        work.extend(bare.chunks(NODES).map(|nodes| Work::Nodes(nodes.to_vec())));
        work
    }

    fn write_unit(&self, unit: &Unit, directories: &mut Cache) -> Result<(), UnpackError> {
        let layer = self.layers[unit.layer];
        for needed in &unit.needed {
            self.go_on()?;
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

    /// Whether nobody has called it off.
    fn go_on(&self) -> Result<(), UnpackError> {
        let cancelled = self.options.cancel.is_some_and(|cancel| cancel.load(Ordering::Relaxed));
        if cancelled || self.failed.load(Ordering::Relaxed) {
            return Err(UnpackError::Interrupted);
        }
        Ok(())
    }

    fn write_part(&self, part: &Part, span: &[u8], directories: &mut Cache) -> Result<(), UnpackError> {
        let failed = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            UnpackError::new(self.path_of(part.file), "write", errno)
        };
        let content = &span[part.start..part.start + part.len];
        let state = &self.files[part.file as usize];
        // Most files: no other thread knows of them.
        if state.all.load(Ordering::Relaxed) == 1 {
            let file = self.create(part.file, directories)?;
            file.write_all_at(content, part.offset).map_err(failed)?;
            return self.finish_file(part.file, &file);
        }
        let file = self.create_shared(part.file, directories)?;
        file.write_all_at(content, part.offset).map_err(failed)?;
        if state.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&part.file);
            self.finish_file(part.file, &file)?;
        }
        Ok(())
    }

    fn create_shared(&self, file: u32, directories: &mut Cache) -> Result<Arc<File>, UnpackError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&file) {
            return Ok(Arc::clone(file));
        }
        let made = Arc::new(self.create(file, directories)?);
        open.insert(file, Arc::clone(&made));
        Ok(made)
    }

    /// Makes an empty regular file.
    fn create(&self, file: u32, directories: &mut Cache) -> Result<File, UnpackError> {
        let place = self.first_name(file);
        let directory = directories.open(self.places, place.directory)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, &*place.name, flags, UNREADY_FILE)
            .map(File::from)
            .map_err(|errno| UnpackError::new(self.path_of(file), "create", errno))
    }

    /// Gives a regular file its length, for a hole at its end, and its attributes.
    fn finish_file(&self, number: u32, file: &File) -> Result<(), UnpackError> {
        let (entry, size) = self.entry(number);
        let Some(size) = size else { return Ok(()) };
        let io = |action| move |errno| UnpackError::new(self.path_of(number), action, errno);
        rustix::fs::ftruncate(file, size).map_err(io("set the length"))?;
        Attributes::of_entry(&entry).set(file.as_fd(), || self.path_of(number))
    }

    /// Makes a node that has no content.
    fn make_node(&self, number: u32, directories: &mut Cache) -> Result<(), UnpackError> {
        self.go_on()?;
        let (entry, size) = self.entry(number);
        if size.is_some() {
            let file = self.create(number, directories)?;
            return self.finish_file(number, &file);
        }
        let place = self.first_name(number);
        let directory = directories.open(self.places, place.directory)?;
        let directory = directory.as_fd();
        let name = &*place.name;
        let failed = |errno| UnpackError::new(self.path_of(number), "create", errno);
        match entry.kind() {
            Kind::Symlink { target } => rustix::fs::symlinkat(target, directory, name).map_err(failed)?,
            Kind::CharDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(directory, name, FileType::CharacterDevice, UNREADY_FILE, device)
                    .map_err(failed)?;
            }
            Kind::BlockDevice { major, minor } => {
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(directory, name, FileType::BlockDevice, UNREADY_FILE, device)
                    .map_err(failed)?;
            }
            Kind::Fifo => {
                rustix::fs::mknodat(directory, name, FileType::Fifo, UNREADY_FILE, 0).map_err(failed)?;
            }
            Kind::Directory | Kind::Regular { .. } | Kind::Hardlink { .. } => {
                unreachable!(
                    "directories and links are not nodes of a plan, and regular files are made above"
                )
            }
        }
        let is_link = matches!(entry.kind(), Kind::Symlink { .. });
        Attributes::of_entry(&entry).set_at(directory, name, is_link, || self.path_of(number))
    }

    /// Gives nodes their other names.
    fn link_names(&self) -> Result<(), UnpackError> {
        let (mut from, mut to) = (self.places.cache(), self.places.cache());
        for node in &self.plan.nodes {
            let Some((first, others)) = node.names.split_first() else { continue };
            for other in others {
                self.go_on()?;
                let from = from.open(self.places, first.directory)?;
                let to = to.open(self.places, other.directory)?;
                rustix::fs::linkat(from, &*first.name, to, &*other.name, AtFlags::empty())
                    .map_err(|errno| UnpackError::new(self.places.path(other), "link", errno))?;
            }
        }
        Ok(())
    }

    /// Hides what lower layers have.
    fn mark(&self) -> Result<(), UnpackError> {
        let mut directories = self.places.cache();
        for name in &self.plan.whiteouts {
            self.go_on()?;
            let directory = directories.open(self.places, name.directory)?;
            rustix::fs::mknodat(directory, &*name.name, FileType::CharacterDevice, Mode::empty(), 0)
                .map_err(|errno| UnpackError::new(self.places.path(name), "write a whiteout", errno))?;
        }
        Ok(())
    }

    fn finish_directories(&self) -> Result<(), UnpackError> {
        // The last first: a mode that keeps everybody out would keep out of what is in it, too.
        for (number, planned) in self.plan.numbered().rev() {
            self.go_on()?;
            let path = || self.places.path(&planned.place);
            let directory = self.places.open(number)?;
            if planned.opaque {
                rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty())
                    .map_err(|errno| UnpackError::new(path(), "mark as opaque", errno))?;
            }
            let attributes = match planned.source {
                Source::Implied => Attributes::implied(),
                Source::Entry { layer, entry } => {
                    let entry = self.layers[layer.index()].index().entry(entry);
                    Attributes::of_entry(&entry).set(directory.as_fd(), path)?;
                    continue;
                }
            };
            attributes.set(directory.as_fd(), path)?;
        }
        Ok(())
    }

    fn node(&self, number: u32) -> &PlanNode {
        &self.plan.nodes[number as usize]
    }

    fn first_name(&self, number: u32) -> &PlanName {
        &self.node(number).names[0]
    }

    /// The entry of a node, and its size where it is a regular file.
    fn entry(&self, number: u32) -> (Entry<'_>, Option<u64>) {
        let Source::Entry { layer, entry } = self.node(number).source else {
            unreachable!("only directories are implied")
        };
        let entry = self.layers[layer.index()].index().entry(entry);
        match entry.kind() {
            Kind::Regular { size } => (entry, Some(size)),
            _ => (entry, None),
        }
    }

    fn path_of(&self, number: u32) -> PathBuf {
        self.places.path(self.first_name(number))
    }
}
