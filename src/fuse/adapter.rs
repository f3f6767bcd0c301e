//! Translates between fuser and [`ImageFs`]: numbers, flags and errnos, and nothing else.
//!
//! All answers hold for ever, since images do not change; what changes in the namespace is invalidated. `open` and
//! `opendir` answer ENOSYS: the kernel then opens by itself, keeps file contents and listings in its cache, and sends
//! neither OPEN nor RELEASE again for the life of the mount. A later process that serves the same mount has to answer in the
//! same way, since the kernel does not ask twice.
//!
//! POSIX ACLs are served as the extended attributes that they are in the layers, and FUSE_POSIX_ACL is not negotiated: the
//! kernel checks permissions by mode bits, in which the owner class and the mask stand already.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use super::convert::{ABSENT, BLOCK_SIZE, file_attr, file_type, ino, sized, without_trusted, xattr};
use super::requests::{Operation, RequestCounters};
use crate::fs::{FsError, ImageFs, Lookup};

/// What the kernel is asked for, where it offers it. A process that takes a mount over relies on the former's set.
///
/// Not FUSE_READDIRPLUS_AUTO: with it the kernel lists all but a directory's first names without attributes, and looks each
/// up when it is asked for; they cost nothing here. (Cold `find -ls` of 3,000 names: 2.5 times as long with it.)
pub(super) const WANTED: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_MAX_PAGES);

/// Readahead requests that the kernel keeps under way at once; beyond, readers wait for each other.
const MAX_BACKGROUND: u16 = 64;
/// A hundred years: how long an answer holds. The kernel cuts it to what its clock can hold (`time_to_jiffies`, fs/fuse/dir.c).
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
const NOT_AT_ALL: Duration = Duration::ZERO;
/// Numbers are never given to anything else, so one generation is enough.
const GENERATION: Generation = Generation(0);

/// Who may see extended attributes of `trusted`: as near to CAP_SYS_ADMIN as a request tells.
const ROOT: u32 = 0;

/// The filesystem as fuser calls it.
#[derive(Debug)]
pub(super) struct Adapter {
    fs: Arc<ImageFs>,
    requests: Arc<RequestCounters>,
}

/// A reply that can be an error.
trait ErrorReply {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl ErrorReply for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

impl Adapter {
    pub(super) fn new(fs: Arc<ImageFs>, requests: Arc<RequestCounters>) -> Self {
        Self { fs, requests }
    }

    /// Does a request's work and gives its answer. A panic in `work` is an answer too: EIO.
    fn answer<R: ErrorReply, T>(
        &self,
        operation: Operation,
        mut reply: R,
        work: impl FnOnce(&ImageFs, &mut R) -> Result<T, FsError>,
        accept: impl FnOnce(R, T),
    ) {
        self.requests.count(operation);
        // What a panic leaves half done is the reply, which the refusal ends.
        let result = catch_unwind(AssertUnwindSafe(|| work(&self.fs, &mut reply)));
        match result.unwrap_or_else(|panic| {
            self.requests.panicked();
            tracing::error!(operation = operation.name(), "handler panicked: {}", message(&*panic));
            Err(FsError::Panicked)
        }) {
            Ok(answer) => accept(reply, answer),
            Err(error) => {
                let errno = error.errno();
                if errno == rustix::io::Errno::IO {
                    self.requests.failed();
                }
                reply.refuse(Errno::from_i32(errno.raw_os_error()));
            }
        }
    }

    fn refuse(&self, operation: Operation, reply: impl ErrorReply, error: FsError) {
        self.answer(operation, reply, |_, _| Err::<(), _>(error), |_, ()| {});
    }

    fn read_only(&self, reply: impl ErrorReply) {
        self.refuse(Operation::Change, reply, FsError::ReadOnly);
    }
}

/// What a panic said.
fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = WANTED & config.capabilities();
        if wanted != WANTED {
            tracing::warn!(missing = ?WANTED.difference(wanted), "the kernel's FUSE lacks capabilities");
        }
        // Both take what they are offered or name the nearest: the kernel offered these, and 64 is not 0.
        let _ = config.add_capabilities(wanted);
        let _ = config.set_max_background(MAX_BACKGROUND);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(
            Operation::Lookup,
            reply,
            |fs, _| match fs.lookup(ino(parent), name.as_bytes())? {
                Lookup::Found(attr) => Ok(file_attr(&attr)),
                // Number 0 with a time to live: the kernel remembers that there is nothing.
                Lookup::Absent { cacheable: true } => Ok(ABSENT),
                Lookup::Absent { cacheable: false } => Err(FsError::NotFound),
            },
            |reply, attr| reply.entry(&FOR_EVER, &attr, GENERATION),
        );
    }

    fn forget(&self, _: &Request, _: INodeNo, _: u64) {
        self.requests.count(Operation::Forget);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            Operation::GetAttr,
            reply,
            |fs, _| fs.getattr(ino(number)),
            |reply, attr| reply.attr(&FOR_EVER, &file_attr(&attr)),
        );
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        self.answer(
            Operation::ReadLink,
            reply,
            |fs, _| fs.readlink(ino(number)),
            |reply, target| reply.data(&target),
        );
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refuse(Operation::Open, reply, FsError::NotImplemented);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            Operation::Read,
            reply,
            |fs, _| fs.read(ino(number), offset, size),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.refuse(Operation::Flush, reply, FsError::NotImplemented);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refuse(Operation::OpenDir, reply, FsError::NotImplemented);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answer(
            Operation::ReadDir,
            reply,
            |fs, reply| {
                fs.readdir(ino(number), offset, |entry| -> bool {
                    let (number, kind) = (INodeNo(entry.attr.ino.get()), file_type(entry.attr.kind));
                    reply.add(number, entry.next, kind, OsStr::from_bytes(entry.name))
                })
            },
            |reply, ()| reply.ok(),
        );
    }

    fn readdirplus(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            Operation::ReadDirPlus,
            reply,
            |fs, reply| {
                fs.readdir(ino(number), offset, |entry| -> bool {
                    let (name, attr) = (OsStr::from_bytes(entry.name), file_attr(&entry.attr));
                    // Without a time to live the kernel asks for name and attributes at their first use.
                    let ttl = if entry.attr_complete { FOR_EVER } else { NOT_AT_ALL };
                    reply.add(attr.ino, entry.next, name, &ttl, &attr, GENERATION)
                })
            },
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.answer(
            Operation::StatFs,
            reply,
            |fs, _| Ok(fs.statfs()),
            |reply, totals| {
                let blocks = totals.bytes.div_ceil(BLOCK_SIZE.into());
                reply.statfs(blocks, 0, 0, totals.files, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
            },
        );
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.answer(
            Operation::GetXattr,
            reply,
            |fs, _| sized(fs.getxattr(ino(number), name.as_bytes())?, size),
            xattr,
        );
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            Operation::ListXattr,
            reply,
            |fs, _| {
                let names = fs.listxattr(ino(number))?;
                // The kernel keeps values of `trusted` from others (xattr(7)), and leaves names to each filesystem.
                let names = if request.uid() == ROOT { names } else { without_trusted(&names) };
                sized(names, size)
            },
            xattr,
        );
    }

    fn lseek(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(
            Operation::Lseek,
            reply,
            |fs, _| {
                let offset = u64::try_from(offset).map_err(|_| FsError::PastEnd)?;
                let hole = match whence {
                    libc::SEEK_HOLE => true,
                    libc::SEEK_DATA => false,
                    _ => return Err(FsError::Invalid),
                };
                let found = fs.seek(ino(number), offset, hole)?;
                i64::try_from(found).map_err(|_| FsError::Invalid)
            },
            ReplyLseek::offset,
        );
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.refuse(Operation::Other, reply, FsError::NotImplemented);
    }

    // The mount is read-only, so the kernel sends none of what follows; should it, it is told so again.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.read_only(reply);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.read_only(reply);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        self.read_only(reply);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.read_only(reply);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.read_only(reply);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        self.read_only(reply);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.read_only(reply);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.read_only(reply);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        self.read_only(reply);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.read_only(reply);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        self.read_only(reply);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        self.read_only(reply);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.read_only(reply);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.refuse(Operation::Other, reply, FsError::NotImplemented);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.refuse(Operation::Other, reply, FsError::NotImplemented);
    }
}

const NAME_MAX: u32 = 255;
const _: () = assert!(crate::fs::NAME_MAX == NAME_MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{FsOptions, ImageSource};
    use crate::store::Store;

    /// A reply that keeps what it was given.
    struct RecordedReply<'a>(&'a mut Option<Errno>);

    impl ErrorReply for RecordedReply<'_> {
        fn refuse(self, errno: Errno) {
            *self.0 = Some(errno);
        }
    }

    #[test]
    fn panic_in_a_handler_is_answered_counted_and_over() {
        let scratch = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(&scratch.path().join("store")).unwrap();
        let fs = ImageFs::new(ImageSource::new(store, None), &FsOptions::default());
        let adapter = Adapter::new(Arc::new(fs), Arc::default());
        let ask = |work: fn() -> Result<(), FsError>| {
            let mut given = None;
            adapter.answer(Operation::Read, RecordedReply(&mut given), |_, _| work(), |_, ()| {});
            given
        };
        assert_eq!(ask(|| panic!("a bug")), Some(Errno::EIO));
        assert_eq!((adapter.requests.panics(), adapter.requests.errors()), (1, 1));
        assert_eq!(ask(|| Err(FsError::NotFound)), Some(Errno::ENOENT));
        assert_eq!(ask(|| Ok(())), None);
        assert_eq!((adapter.requests.panics(), adapter.requests.errors()), (1, 1));
        assert_eq!(adapter.requests.counts().collect::<Vec<_>>(), [("READ", 3)]);
    }
}
