//! Translates between fuser and [`LayerFiles`].
//!
//! Attributes are valid forever, as in the mount of the images, and `open` answers ENOSYS for the same reasons. The kernel then keeps the
//! pages of a file in its cache. A kernel that mounts tree images with `directio` reads past that cache, which stays empty.
//!
//! FUSE_PASSTHROUGH must not be requested: kernels refuse to mount EROFS from files of a filesystem that may be stacked on another one
//! (`erofs_fc_fill_super`, fs/erofs/super.c).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    FileHandle, FileType, Filesystem, INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};

use super::answer::{ErrorReply, answer};
use super::convert::{FOREVER, GENERATION, file_attr, ino};
use super::failures::ReadAccounts;
use super::negotiate::negotiate;
use super::requests::{Operation, RequestCounters};
use crate::fs::{FsError, LayerFiles};

/// The capabilities that are requested where the kernel offers them.
///
/// FUSE_ASYNC_DIO: with `directio`, EROFS reads several ranges at once. Without it, each waits for the one before.
const CAPABILITIES: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_NO_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_NO_OPEN_SUPPORT)
    .union(InitFlags::FUSE_NO_OPENDIR_SUPPORT)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_MAX_PAGES);

/// [`LayerFiles`] as a fuser filesystem.
#[derive(Debug)]
pub(super) struct LayerAdapter {
    files: Arc<LayerFiles>,
    counters: Arc<RequestCounters>,
    accounts: Arc<ReadAccounts>,
}

impl LayerAdapter {
    pub(super) fn new(
        files: Arc<LayerFiles>,
        counters: Arc<RequestCounters>,
        accounts: Arc<ReadAccounts>,
    ) -> Self {
        Self { files, counters, accounts }
    }

    fn answer<R: ErrorReply, T>(
        &self,
        request: &Request,
        operation: Operation,
        reply: R,
        work: impl FnOnce(&LayerFiles) -> Result<T, FsError>,
        accept: impl FnOnce(R, T),
    ) {
        let failed = |error: &FsError| self.accounts.record(request.pid(), error);
        answer(&self.counters, operation, reply, |_| work(&self.files), accept, failed);
    }

    fn refuse(&self, operation: Operation, reply: impl ErrorReply) {
        let error = FsError::NotImplemented;
        answer(&self.counters, operation, reply, |_| Err::<(), _>(error), |_, ()| {}, |_| {});
    }
}

/// The requests that are not here are answered with ENOSYS by fuser. The kernel does not send those that change a read-only mount.
impl Filesystem for LayerAdapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config, CAPABILITIES);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(
            request,
            Operation::Lookup,
            reply,
            |files| files.lookup(ino(parent), name.as_bytes()),
            // Not cached: the lookup of a file tells that a superblock begins to use it.
            |reply, attr| reply.entry(&Duration::ZERO, &file_attr(&attr), GENERATION),
        );
    }

    fn forget(&self, _: &Request, number: INodeNo, lookups: u64) {
        self.counters.count(Operation::Forget);
        self.files.forget(ino(number), lookups);
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            request,
            Operation::GetAttr,
            reply,
            |files| files.getattr(ino(number)),
            |reply, attr| reply.attr(&FOREVER, &file_attr(&attr)),
        );
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refuse(Operation::Open, reply);
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
            |files| self.accounts.count_read(request.pid(), || files.read(ino(number), offset, size)),
            |reply, bytes| reply.data(&bytes),
        );
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.refuse(Operation::Flush, reply);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.refuse(Operation::OpenDir, reply);
    }

    fn readdir(&self, request: &Request, number: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answer(
            request,
            Operation::ReadDir,
            reply,
            |files| files.getattr(ino(number)),
            |mut reply, _| {
                for (next, name) in [(1, "."), (2, "..")] {
                    if offset < next && reply.add(number, next, FileType::Directory, name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.refuse(Operation::GetXattr, reply);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.refuse(Operation::ListXattr, reply);
    }
}
