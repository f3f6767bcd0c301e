//! Reads extended attributes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

/// Longest list of names of extended attributes, and longest value (linux/limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
pub const XATTR_MAX: usize = 65536;

/// Returns the names and values of the extended attributes of a file for whose names `is_kept` returns true, sorted. The last component
/// of `path` is not followed. A filesystem without extended attributes has none.
///
/// # Errors
/// The attributes cannot be read.
pub fn read_xattrs(
    path: &OsStr,
    is_kept: impl Fn(&[u8]) -> bool,
) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut buffer = vec![0; XATTR_MAX];
    let length = match rustix::fs::llistxattr(path, &mut buffer) {
        Err(Errno::OPNOTSUPP) => 0,
        length => length?,
    };
    let names = buffer[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty() && is_kept(name));
    let names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    let mut xattrs = Vec::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(&name), &mut buffer)?;
        xattrs.push((name, buffer[..length].to_vec()));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}
