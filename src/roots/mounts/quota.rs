//! Limits what a home may take of its disk, where the filesystem keeps project quotas (ext4 and XFS with `prjquota`).
//!
//! A home is a project of its own, and what is made in it inherits that. The kernel lets a process with CAP_SYS_RESOURCE
//! exceed any limit; an overlay writes with the credentials that it was made with, which is why roots are made without it.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater, opcode};

use crate::roots::mounts::upper::files_within;

/// `struct fsxattr` (linux/fs.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const _: () = assert!(size_of::<Attributes>() == 28);

const GET: rustix::ioctl::Opcode = opcode::read::<Attributes>(b'X', 31);
const SET: rustix::ioctl::Opcode = opcode::write::<Attributes>(b'X', 32);
/// What is made in the directory belongs to its project (FS_XFLAG_PROJINHERIT).
const INHERIT: u32 = 0x200;
/// Project quotas (PRJQUOTA, linux/quota.h).
const PROJECT: i32 = 2;
/// Projects of homes are from here on, beyond those that administrators number.
const FIRST_PROJECT: u32 = 1 << 31;
/// How many numbers are tried that something else has.
const TRIES: u32 = 16;
/// Unit of a limit (QIF_DQBLKSIZE).
const BLOCK: u64 = 1024;

/// Holds everything that will be made in an empty home to `bytes`, and to as many files as go with that.
///
/// # Errors
///
/// The filesystem has no such limits, or they are not switched on.
pub(crate) fn limit(home: BorrowedFd<'_>, bytes: u64) -> Result<(), Errno> {
    let project = free_project(home, &rustix::fs::fstat(home)?)?;
    let mut attributes = attributes(home)?;
    attributes.flags |= INHERIT;
    attributes.project = project;
    // SAFETY: The request takes a `struct fsxattr`, which `Attributes` is laid out as.
    #[expect(unsafe_code, reason = "an ioctl of filesystems")]
    unsafe { rustix::ioctl::ioctl(home, Setter::<SET, _>::new(attributes)) }?;
    set_limit(home, project, bytes.div_ceil(BLOCK), files_within(bytes))
}

/// The project that a home is limited as, if it is.
pub(crate) fn project(home: BorrowedFd<'_>) -> Option<u32> {
    attributes(home).ok().map(|attributes| attributes.project).filter(|project| *project >= FIRST_PROJECT)
}

/// Forgets a project's limit. `directory` is any on the filesystem.
pub(crate) fn lift(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    Ok(set_limit(directory, project, 0, 0)?)
}

/// A number that nothing on the filesystem has: inode numbers are, on ext4, and nearly so on others.
fn free_project(home: BorrowedFd<'_>, stat: &Stat) -> Result<u32, Errno> {
    let low = u32::try_from(stat.st_ino % u64::from(FIRST_PROJECT)).expect("taken modulo 2^31");
    for project in (0..TRIES).map(|more| FIRST_PROJECT | low.wrapping_add(more) & !FIRST_PROJECT) {
        let mut used = empty();
        match control(home, libc::Q_GETQUOTA, project, &mut used) {
            // A project that nothing has ever belonged to.
            Err(Errno::NOENT) => return Ok(project),
            Ok(()) if used.dqb_curinodes == 0 && used.dqb_curspace == 0 => return Ok(project),
            Ok(()) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EXIST)
}

fn attributes(directory: BorrowedFd<'_>) -> Result<Attributes, Errno> {
    let mut attributes = Attributes::default();
    // SAFETY: The request gives a `struct fsxattr`, which `Attributes` is laid out as.
    #[expect(unsafe_code, reason = "an ioctl of filesystems")]
    unsafe { rustix::ioctl::ioctl(directory, Updater::<GET, _>::new(&mut attributes)) }?;
    Ok(attributes)
}

fn set_limit(directory: BorrowedFd<'_>, project: u32, blocks: u64, files: u64) -> Result<(), Errno> {
    let mut limits = libc::dqblk { dqb_bhardlimit: blocks, dqb_ihardlimit: files, ..empty() };
    limits.dqb_valid = libc::QIF_BLIMITS | libc::QIF_ILIMITS;
    control(directory, libc::Q_SETQUOTA, project, &mut limits)
}

fn empty() -> libc::dqblk {
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

/// quotactl_fd(2), which the C library does not wrap.
fn control(
    directory: BorrowedFd<'_>,
    command: i32,
    project: u32,
    block: &mut libc::dqblk,
) -> Result<(), Errno> {
    let command = libc::QCMD(command, PROJECT);
    // SAFETY: Both commands read or write one `struct dqblk` at the address, which the reference keeps alive.
    #[expect(unsafe_code, reason = "a system call without a wrapper")]
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
    fn requests_have_the_numbers_of_the_kernel() {
        assert_eq!((GET, SET), (0x801c_581f, 0x401c_5820));
    }

    #[test]
    fn directory_that_is_no_home_has_no_project_of_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = std::fs::File::open(scratch.path()).unwrap();
        assert_eq!(project(directory.as_fd()), None);
    }
}
