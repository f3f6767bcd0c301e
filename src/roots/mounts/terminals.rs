//! The pseudo-terminals of a sandbox.

use std::path::Path;

use rustix::mount::MountAttrFlags;

use super::mount::{attach, make};
use super::plan;
use crate::roots::RootsError;

/// Where all programs expect pseudo-terminals.
const TERMINALS: &str = "/dev/pts";

/// Mounts an instance of devpts of its own over the host's, in the private mount namespace of this process. Sandboxes bind it, so
/// that their programs can make pseudo-terminals, and see those of no other program.
///
/// Does nothing on a host without pseudo-terminals.
///
/// # Errors
/// The kernel refuses the mount.
pub fn mount_terminals() -> Result<(), RootsError> {
    let path = Path::new(TERMINALS);
    if !path.is_dir() {
        return Ok(());
    }
    let source = "rcx-terminals";
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    attach(&make("devpts", source, &plan::terminals(source), attributes)?, source, path)
}
