//! Translates between fuser and [`ImageFs`]: inode numbers, flags and errnos, and nothing else.
//!
//! Every answer is valid forever, because images do not change; the daemon invalidates changed names explicitly. `open`
//! and `opendir` answer ENOSYS. The kernel then opens files itself, keeps contents and listings in its cache, and sends
//! neither OPEN nor RELEASE for the rest of the mount's life. A later process that serves the same mount must answer in the
//! same way, because the kernel does not ask again.
//!
//! With FUSE_POSIX_ACL the kernel enforces the ACLs that the layers contain, as on ext4, including in an overlay on top of the
//! mount. It asks for an inode's ACL with GETXATTR when it first checks the permissions of a user who is not the owner, and
//! caches the answer, even if the inode has no ACL (`fuse_get_acl`, fs/fuse/acl.c).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::answer::{ErrorReply, answer};
use super::convert::{
    ABSENT, BLOCK_SIZE, FOREVER, GENERATION, file_attr, file_type, fill_buffer, ino, reply_xattr,
    without_trusted,
};
use super::failures::ReadAccounts;
use super::negotiate::negotiate;
use super::requests::{Operation, RequestCounters};
use crate::fs::{FsError, ImageFs, Lookup};

/// The capabilities that are requested where the kernel offers them. A process that takes over a mount relies on the set
/// that its predecessor negotiated.
///
/// FUSE_NO_EXPORT_SUPPORT (since Linux 6.9): with file handles, overlayfs finds the origin of a copied-up file by a file handle, as a dentry
/// without a parent. FUSE cannot revalidate such a dentry, and the file gives ESTALE once the kernel has dropped it from its cache.
/// Older kernels have handles only for cached files, unless FUSE_EXPORT_SUPPORT is requested.
/// (A filesystem of the upper without a UUID hides this, because overlayfs cannot tell it from FUSE, which has none either.)
///
/// FUSE_READDIRPLUS_AUTO is not requested: with it, the kernel lists all but a directory's first names without attributes, and
/// looks up each name at its first use, while attributes cost nothing here. (Cold `find -ls` of 3,000 names: 2.5 times as
/// long.)
const CAPABILITIES: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_MAX_PAGES);

/// The user who may list `trusted` extended attributes. The kernel's rule is CAP_SYS_ADMIN, but a request carries only the
/// user ID.
const ROOT: u32 = 0;

const NAME_MAX: u32 = 255;
const _: () = assert!(crate::fs::NAME_MAX == NAME_MAX as usize);

/// [`ImageFs`] as a fuser filesystem.
#[derive(Debug)]
pub(super) struct Adapter {
    fs: Arc<ImageFs>,
    counters: Arc<RequestCounters>,
    accounts: Arc<ReadAccounts>,
}

impl Adapter {
    pub(super) fn new(fs: Arc<ImageFs>, counters: Arc<RequestCounters>, accounts: Arc<ReadAccounts>) -> Self {
        Self { fs, counters, accounts }
    }

    fn answer<R: ErrorReply, T>(
        &self,
        request: &Request,
        operation: Operation,
        reply: R,
        work: impl FnOnce(&ImageFs, &mut R) -> Result<T, FsError>,
        accept: impl FnOnce(R, T),
    ) {
        let failed = |error: &FsError| self.accounts.record(request.pid(), error);
        answer(&self.counters, operation, reply, |reply| work(&self.fs, reply), accept, failed);
    }

    fn refuse(&self, operation: Operation, reply: impl ErrorReply, error: FsError) {
        answer(&self.counters, operation, reply, |_| Err::<(), _>(error), |_, ()| {}, |_| {});
    }

    fn read_only(&self, reply: impl ErrorReply) {
        self.refuse(Operation::Change, reply, FsError::ReadOnly);
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config, CAPABILITIES);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(
            request,
            Operation::Lookup,
            reply,
            |fs, _| match fs.lookup(ino(parent), name.as_bytes())? {
                Lookup::Found(attr) => {
                    fs.add_references(attr.ino, 1);
                    Ok(file_attr(&attr))
                }
                // Inode number 0 with a time to live: the kernel caches that the name is absent.
                Lookup::Absent { cacheable: true } => Ok(ABSENT),
                Lookup::Absent { cacheable: false } => Err(FsError::NotFound),
            },
            |reply, attr| reply.entry(&FOREVER, &attr, GENERATION),
        );
    }

    fn forget(&self, _: &Request, number: INodeNo, count: u64) {
        self.counters.count(Operation::Forget);
        self.fs.forget(ino(number), count);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            request,
            Operation::GetAttr,
            reply,
            |fs, _| fs.getattr(ino(number)),
            |reply, attr| reply.attr(&FOREVER, &file_attr(&attr)),
        );
    }

    fn readlink(&self, request: &Request, number: INodeNo, reply: ReplyData) {
        self.answer(
            request,
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
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            request,
            Operation::Read,
            reply,
            |fs, _| self.accounts.count_read(request.pid(), || fs.read(ino(number), offset, size)),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.refuse(Operation::Flush, reply, FsError::NotImplemented);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refuse(Operation::OpenDir, reply, FsError::NotImplemented);
    }

    fn readdir(&self, request: &Request, number: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answer(
            request,
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
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            request,
            Operation::ReadDirPlus,
            reply,
            |fs, reply| {
                let mut listed = Vec::new();
                fs.readdir(ino(number), offset, |entry| -> bool {
                    let (name, attr) = (OsStr::from_bytes(entry.name), file_attr(&entry.attr));
                    // With a time to live of 0 the kernel looks the name up at its first use.
                    let ttl = if entry.attr_complete { FOREVER } else { Duration::ZERO };
                    let is_full = reply.add(attr.ino, entry.next, name, &ttl, &attr, GENERATION);
                    // The kernel takes no reference from `.` and `..` (`fuse_direntplus_link`, fs/fuse/readdir.c).
                    if !is_full && !matches!(entry.name, b"." | b"..") {
                        listed.push(entry.attr.ino);
                    }
                    is_full
                })?;
                listed.into_iter().for_each(|ino| fs.add_references(ino, 1));
                Ok(())
            },
            |reply, ()| reply.ok(),
        );
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.answer(
            request,
            Operation::StatFs,
            reply,
            |fs, _| Ok(fs.statfs()),
            |reply, totals| {
                let blocks = totals.bytes.div_ceil(BLOCK_SIZE.into());
                reply.statfs(blocks, 0, 0, totals.files, 0, BLOCK_SIZE, NAME_MAX, BLOCK_SIZE);
            },
        );
    }

    fn getxattr(&self, request: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.answer(
            request,
            Operation::GetXattr,
            reply,
            |fs, _| fill_buffer(fs.getxattr(ino(number), name.as_bytes())?, size),
            reply_xattr,
        );
    }

    fn listxattr(&self, request: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            request,
            Operation::ListXattr,
            reply,
            |fs, _| {
                let names = fs.listxattr(ino(number))?;
                // The kernel itself hides the values of `trusted` attributes (xattr(7)) but leaves names to the filesystem.
                let names = if request.uid() == ROOT { names } else { without_trusted(&names) };
                fill_buffer(names, size)
            },
            reply_xattr,
        );
    }

    fn lseek(
        &self,
        request: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(
            request,
            Operation::Lseek,
            reply,
            |fs, _| {
                let offset = u64::try_from(offset).map_err(|_| FsError::PastEnd)?;
                let hole = match whence {
                    libc::SEEK_HOLE => true,
                    libc::SEEK_DATA => false,
                    _ => return Err(FsError::Invalid),
                };
                let position = fs.seek(ino(number), offset, hole)?;
                i64::try_from(position).map_err(|_| FsError::Invalid)
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

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.refuse(Operation::Other, reply, FsError::NotImplemented);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.refuse(Operation::Other, reply, FsError::NotImplemented);
    }

    // The mount is read-only: the kernel sends the following requests only after root has remounted it.

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
}
