//! Attributes, times and extended attributes as fuser wants them.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo, ReplyXattr};

use crate::fs::{FileKind, FsError, Ino, InodeAttr};
use crate::layer::Timestamp;

/// Preferred length of a read, and the unit of `statfs`.
pub(super) const BLOCK_SIZE: u32 = 4096;

/// The answer that a name stands for nothing: of this, the kernel looks at the number only.
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
    // Linux keeps both as 64 bits of seconds, so there is always one.
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(epoch)
}

/// An extended attribute's answer: what it holds, or how long that is where the caller gave no room.
pub(super) enum XattrReply {
    Length(u32),
    Bytes(Vec<u8>),
}

pub(super) fn sized(bytes: Vec<u8>, room: u32) -> Result<XattrReply, FsError> {
    match u32::try_from(bytes.len()) {
        Ok(length) if room == 0 => Ok(XattrReply::Length(length)),
        Ok(length) if length <= room => Ok(XattrReply::Bytes(bytes)),
        _ => Err(FsError::BufferTooSmall),
    }
}

/// Names of extended attributes, each with a NUL behind it, without those that are for the trusted.
pub(super) fn without_trusted(names: &[u8]) -> Vec<u8> {
    let names = names.split_inclusive(|byte| *byte == 0);
    names.filter(|name| !name.starts_with(b"trusted.")).flatten().copied().collect()
}

pub(super) fn xattr(reply: ReplyXattr, answer: XattrReply) {
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
        // Half a second before: second -1, half a second on.
        assert_eq!(at(-1, 500_000_000), epoch - Duration::from_millis(500));
        assert!(at(i64::MIN, 0) < at(i64::MAX, 999_999_999));
    }

    #[test]
    fn names_for_the_trusted_are_left_out_and_no_others() {
        let names = b"trusted.a\0user.trusted.b\0trusted\0security.c\0trusted.\0";
        assert_eq!(without_trusted(names), b"user.trusted.b\0trusted\0security.c\0");
        assert_eq!(without_trusted(b""), b"");
    }

    #[test]
    fn xattr_room_is_asked_for_kept_and_enforced() {
        assert!(matches!(sized(vec![1, 2, 3], 0), Ok(XattrReply::Length(3))));
        assert!(matches!(sized(vec![1, 2, 3], 3), Ok(XattrReply::Bytes(bytes)) if bytes == [1, 2, 3]));
        assert!(matches!(sized(vec![1, 2, 3], 2), Err(FsError::BufferTooSmall)));
        assert!(matches!(sized(Vec::new(), 0), Ok(XattrReply::Length(0))));
    }
}
