//! Limits the size of a home with project quotas (ext4 and XFS with the mount option `prjquota`).
//!
//! Each home is a project of its own; files in it inherit the project. The kernel lets a process with CAP_SYS_RESOURCE exceed
//! all limits, and an overlay writes with the credentials of the process that made it. So overlays are made without that
//! capability (`mount::overlay`).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater, opcode};

use super::upper::inodes_for;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct FsXattr {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<FsXattr>() == 28);

/// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR.
const GET: rustix::ioctl::Opcode = opcode::read::<FsXattr>(b'X', 31);
const SET: rustix::ioctl::Opcode = opcode::write::<FsXattr>(b'X', 32);
/// FS_XFLAG_PROJINHERIT: new files in the directory get its project.
const INHERIT: u32 = 0x200;
/// PRJQUOTA (linux/quota.h).
const PROJECT: i32 = 2;
/// The first project number for homes, above the numbers that administrators use.
const FIRST_PROJECT: u32 = 1 << 31;
/// Number of projects that are tried before the search for a free project fails.
const TRIES: u32 = 16;
/// The unit of block limits in bytes (QIF_DQBLKSIZE).
const BLOCK: u64 = 1024;

/// Limits everything that will be made in an empty home to `bytes`, and to a number of inodes in proportion.
///
/// # Errors
///
/// The filesystem has no project quotas, or they are not enabled.
pub(crate) fn limit(home: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    let project = free_project(home, &rustix::fs::fstat(home)?)?;
    let mut attributes = attributes(home)?;
    attributes.flags |= INHERIT;
    attributes.project = project;
    // SAFETY: The request reads one `struct fsxattr`, which has the layout of `FsXattr`.
    #[expect(unsafe_code, reason = "ioctl FS_IOC_FSSETXATTR")]
    unsafe { rustix::ioctl::ioctl(home, Setter::<SET, _>::new(attributes)) }?;
    set_limit(home, project, bytes.div_ceil(BLOCK), inodes_for(bytes))
}

/// Returns the project of a home that has a limit.
pub(crate) fn project(home: BorrowedFd<'_>) -> Option<u32> {
    attributes(home).ok().map(|attributes| attributes.project).filter(|project| *project >= FIRST_PROJECT)
}

/// Removes the limit of a project. `directory` is any directory on the filesystem.
pub(crate) fn lift(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    Ok(set_limit(directory, project, 0, 0)?)
}

/// Returns a project number that no file on the filesystem has. The search starts at the home's inode number.
fn free_project(home: BorrowedFd<'_>, stat: &Stat) -> Result<u32, Errno> {
    let low = u32::try_from(stat.st_ino % u64::from(FIRST_PROJECT)).expect("taken modulo 2^31");
    for project in (0..TRIES).map(|more| FIRST_PROJECT | low.wrapping_add(more) & !FIRST_PROJECT) {
        let mut usage = empty_dqblk();
        match quotactl(home, libc::Q_GETQUOTA, project, &mut usage) {
            // No file ever belonged to the project.
            Err(Errno::NOENT) => return Ok(project),
            Ok(()) if usage.dqb_curinodes == 0 && usage.dqb_curspace == 0 => return Ok(project),
            Ok(()) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

fn attributes(directory: BorrowedFd<'_>) -> Result<FsXattr, Errno> {
    let mut attributes = FsXattr::default();
    // SAFETY: The request writes one `struct fsxattr`, which has the layout of `FsXattr`.
    #[expect(unsafe_code, reason = "ioctl FS_IOC_FSGETXATTR")]
    unsafe { rustix::ioctl::ioctl(directory, Updater::<GET, _>::new(&mut attributes)) }?;
    Ok(attributes)
}

fn set_limit(directory: BorrowedFd<'_>, project: u32, blocks: u64, inodes: u64) -> Result<(), Errno> {
    let mut limits = libc::dqblk { dqb_bhardlimit: blocks, dqb_ihardlimit: inodes, ..empty_dqblk() };
    limits.dqb_valid = libc::QIF_BLIMITS | libc::QIF_ILIMITS;
    quotactl(directory, libc::Q_SETQUOTA, project, &mut limits)
}

fn empty_dqblk() -> libc::dqblk {
    libc::dqblk {
        dqb_bhardlimit: 0,
        dqb_bsoftlimit: 0,
        dqb_curspace: 0,
        dqb_ihardlimit: 0,
        dqb_isoftlimit: 0,
        dqb_curinodes: 0,
        dqb_btime: 0,
        dqb_itime: 0,
        dqb_valid: 0,
    }
}

/// Calls quotactl_fd(2), for which libc has no wrapper.
fn quotactl(
    directory: BorrowedFd<'_>,
    command: i32,
    project: u32,
    block: &mut libc::dqblk,
) -> Result<(), Errno> {
    let command = libc::QCMD(command, PROJECT);
    // SAFETY: Both commands read or write one `struct dqblk` at the address, which is valid for the call.
    #[expect(unsafe_code, reason = "quotactl_fd(2) has no wrapper")]
    let result = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            directory.as_raw_fd(),
            command,
            libc::c_ulong::from(project),
            std::ptr::from_mut(block),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn ioctl_numbers_match_the_kernel() {
        assert_eq!((GET, SET), (0x801c_581f, 0x401c_5820));
    }

    #[test]
    fn directory_without_a_limit_has_no_project() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = std::fs::File::open(scratch.path()).unwrap();
        assert_eq!(project(directory.as_fd()), None);
    }
}
