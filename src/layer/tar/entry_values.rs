//! Values of an entry, limited to what Linux supports.

use super::header::TarHeader;
use super::{MAX_TARGET, TarFault};

/// Converts the number in a header field; `name` is the field's name in errors.
pub(super) fn field<T: TryFrom<i64>>(value: Option<i64>, name: &'static str) -> Result<T, TarFault> {
    T::try_from(value.ok_or(TarFault::HeaderNumber(name))?).map_err(|_| TarFault::Range(name))
}

/// Refuses the owner `u32::MAX`: for chown(2) it means "do not change", so no file can have it.
pub(super) fn owner(id: u32, name: &'static str) -> Result<u32, TarFault> {
    if id == u32::MAX { Err(TarFault::Range(name)) } else { Ok(id) }
}

/// Returns a device's numbers, limited to what Linux supports: 12 bits major, 20 bits minor.
pub(super) fn device(header: &TarHeader<'_>) -> Result<(u32, u32), TarFault> {
    let (major, minor) = header.device().ok_or(TarFault::HeaderNumber("device number"))?;
    match (u32::try_from(major), u32::try_from(minor)) {
        (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
        _ => Err(TarFault::Range("device number")),
    }
}

/// Refuses targets that Linux cannot store.
pub(super) fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, TarFault> {
    if target.is_empty() || target.len() > MAX_TARGET || target.contains(&0) {
        return Err(TarFault::SymlinkTarget);
    }
    Ok(target.into_boxed_slice())
}
