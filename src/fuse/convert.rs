//! Converts attributes, times and extended attributes to fuser's types.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, Generation, INodeNo, ReplyXattr};

use crate::fs::{FileKind, FsError, Ino, InodeAttr};
use crate::layer::Timestamp;

/// Preferred I/O size of files, and the block size of `statfs`, in bytes.
pub(super) const BLOCK_SIZE: u32 = 4096;

/// A hundred years: how long an answer is valid. The kernel clamps it to the range of its clock (`time_to_jiffies`,
/// fs/fuse/dir.c).
pub(super) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Inode numbers are never reused, so one generation is enough.
pub(super) const GENERATION: Generation = Generation(0);

/// The answer for an absent name. The kernel reads only the inode number.
pub(super) const ABSENT: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: SystemTime::UNIX_EPOCH,
    mtime: SystemTime::UNIX_EPOCH,
    ctime: SystemTime::UNIX_EPOCH,
    crtime: SystemTime::UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_SIZE,
    flags: 0,
};

pub(super) fn ino(number: INodeNo) -> Ino {
    Ino::from_kernel(number.0)
}

pub(super) fn file_attr(attr: &InodeAttr) -> FileAttr {
    let time = system_time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.ino.get()),
        size: attr.size,
        blocks: attr.blocks,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
    }
}

pub(super) fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let whole = if time.sec < 0 { epoch.checked_sub(seconds) } else { epoch.checked_add(seconds) };
    // The fallback is never needed: Linux stores a `SystemTime` as 64 bits of seconds, as a `Timestamp` does.
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(epoch)
}

/// The answer to an extended attribute request: the bytes, or their length if the caller asked only for the length.
pub(super) enum XattrReply {
    Length(u32),
    Bytes(Vec<u8>),
}

/// Answers with `bytes` if the caller's buffer is large enough. A buffer size of 0 asks for the length.
pub(super) fn fill_buffer(bytes: Vec<u8>, buffer_size: u32) -> Result<XattrReply, FsError> {
    match u32::try_from(bytes.len()) {
        Ok(length) if buffer_size == 0 => Ok(XattrReply::Length(length)),
        Ok(length) if length <= buffer_size => Ok(XattrReply::Bytes(bytes)),
        _ => Err(FsError::BufferTooSmall),
    }
}

/// Removes the `trusted` names from a list of NUL-terminated names.
pub(super) fn without_trusted(names: &[u8]) -> Vec<u8> {
    let names = names.split_inclusive(|byte| *byte == 0);
    names.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

pub(super) fn reply_xattr(reply: ReplyXattr, answer: XattrReply) {
    match answer {
        XattrReply::Length(length) => reply.size(length),
        XattrReply::Bytes(bytes) => reply.data(&bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        let epoch = SystemTime::UNIX_EPOCH;
        let at = |sec, nsec| system_time(Timestamp { sec, nsec });
        assert_eq!(at(0, 0), epoch);
        assert_eq!(at(3, 7), epoch + Duration::new(3, 7));
        // Half a second before the epoch is second -1 plus half a second.
        assert_eq!(at(-1, 500_000_000), epoch - Duration::from_millis(500));
        assert!(at(i64::MIN, 0) < at(i64::MAX, 999_999_999));
    }

    #[test]
    fn only_trusted_names_are_removed() {
        let names = b"trusted.a\0user.trusted.b\0trusted\0security.c\0trusted.\0";
        assert_eq!(without_trusted(names), b"user.trusted.b\0trusted\0security.c\0");
        assert_eq!(without_trusted(b""), b"");
    }

    #[test]
    fn xattr_answer_respects_the_buffer_size() {
        assert!(matches!(fill_buffer(vec![1, 2, 3], 0), Ok(XattrReply::Length(3))));
        assert!(matches!(fill_buffer(vec![1, 2, 3], 3), Ok(XattrReply::Bytes(bytes)) if bytes == [1, 2, 3]));
        assert!(matches!(fill_buffer(vec![1, 2, 3], 2), Err(FsError::BufferTooSmall)));
        assert!(matches!(fill_buffer(Vec::new(), 0), Ok(XattrReply::Length(0))));
    }
}
