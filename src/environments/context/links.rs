//! Checks that no symbolic link of a context leads out of it.

use std::path::Path;

use super::{ContextEntries, ContextEntryKind, ContextError};
use crate::os::{LINKS_MAX, PathWalk};

/// Checks all links. A link may lead to a name that does not exist, for example one that a build makes.
pub(super) fn check(entries: &ContextEntries) -> Result<(), ContextError> {
    for (path, entry) in entries {
        let ContextEntryKind::Link(target) = &entry.kind else { continue };
        if target.as_os_str().is_empty() {
            return Err(ContextError::entry(path, "is a link without a target"));
        }
        if target.is_absolute() || leads_out(entries, path, target)? {
            return Err(ContextError::Link { path: path.clone(), target: target.clone() });
        }
    }
    Ok(())
}

/// Follows a link, and those in its target: `..` behind a link leaves the directory that the link leads to.
fn leads_out(entries: &ContextEntries, path: &Path, target: &Path) -> Result<bool, ContextError> {
    let loops = |_| ContextError::entry(path, "is a link that leads through too many links");
    let directory = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
    let mut walk = PathWalk::new(target, &directory, LINKS_MAX);
    while let Some(at) = walk.step() {
        let at = at.strip_prefix("/").unwrap_or(at);
        if let Some(ContextEntryKind::Link(next)) = entries.get(at).map(|entry| &entry.kind) {
            walk.follow(next).map_err(loops)?;
        }
    }
    Ok(walk.has_left_root())
}
