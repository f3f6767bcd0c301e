//! Resolves a path inside a root, one component at a time.
//!
//! The kernel does this itself (`RESOLVE_IN_ROOT`) if the root is one directory. If it is not, because parts of it are
//! mounted only later or because it is an archive, [`PathWalk`] keeps the remaining components and counts the links; the
//! caller looks up each component.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Maximum number of symbolic links that are followed in one path, as in the kernel (path_resolution(7), `MAXSYMLINKS`).
pub const LINKS_MAX: u32 = 40;

/// A path has more symbolic links than the walk may follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many symbolic links")]
pub struct TooManyLinks;

/// A walk from the root of a tree: the resolved part of the path and the remaining components.
///
/// `..` never leads above the root.
#[derive(Debug)]
pub struct PathWalk {
    at: PathBuf,
    rest: VecDeque<OsString>,
    links_left: u32,
    left_root: bool,
}

impl PathWalk {
    /// Starts a walk of `path`: from the root, or from `directory` if `path` is relative.
    ///
    /// `directory` may contain links. The walk follows at most `links_max` links.
    #[must_use]
    pub fn new(path: &Path, directory: &Path, links_max: u32) -> Self {
        let mut walk =
            Self { at: PathBuf::from("/"), rest: VecDeque::new(), links_left: links_max, left_root: false };
        walk.queue(path);
        if path.is_relative() {
            walk.queue(directory);
        }
        walk
    }

    /// The resolved part of the path: absolute, and free of links if the caller has followed each one.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// Returns the same path as [`PathWalk::at`], by value.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        self.at
    }

    /// Whether a `..` at the root was ignored. Callers that must refuse such paths, as `RESOLVE_BENEATH` does, check this.
    #[must_use]
    pub fn has_left_root(&self) -> bool {
        self.left_root
    }

    /// Whether components remain.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.rest.is_empty()
    }

    /// Advances by one component and returns the new path; `None` at the end.
    ///
    /// Before the call, the caller must check that the current path is a directory; after it, whether the new path is a link
    /// to [follow](PathWalk::follow).
    pub fn step(&mut self) -> Option<&Path> {
        let name = self.rest.pop_front()?;
        if name == ".." {
            self.left_root |= !self.at.pop();
        } else {
            self.at.push(name);
        }
        Some(&self.at)
    }

    /// Replaces the last component of the current path, a link, by the link's target.
    ///
    /// The current path is then the directory at which the walk of the target starts.
    ///
    /// # Errors
    ///
    /// Fails if the walk has already followed `links_max` links.
    pub fn follow(&mut self, target: &Path) -> Result<(), TooManyLinks> {
        self.links_left = self.links_left.checked_sub(1).ok_or(TooManyLinks)?;
        self.at.pop();
        if target.is_absolute() {
            self.at = PathBuf::from("/");
        }
        self.queue(target);
        Ok(())
    }

    /// Puts the components of `path` before the remaining ones. Keeps `..`: its meaning depends on the links before it.
    fn queue(&mut self, path: &Path) {
        for component in path.components().rev() {
            match component {
                Component::Normal(name) => self.rest.push_front(name.to_owned()),
                Component::ParentDir => self.rest.push_front("..".into()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resolves `path` in a tree whose only links are `links`.
    fn walk(path: &str, directory: &str, links: &[(&str, &str)]) -> Result<String, TooManyLinks> {
        let mut walk = PathWalk::new(Path::new(path), Path::new(directory), LINKS_MAX);
        while let Some(at) = walk.step() {
            if let Some((_, target)) = links.iter().find(|(link, _)| Path::new(link) == at) {
                walk.follow(Path::new(target))?;
            }
        }
        Ok(walk.into_path().to_str().unwrap().to_owned())
    }

    #[test]
    fn path_never_leaves_the_root() {
        for (path, directory, expected) in [
            ("a/b", "/", "/a/b"),
            ("a/./b/../c", "/w", "/w/a/c"),
            ("/a", "/w", "/a"),
            ("../../../a", "/w", "/a"),
            ("link/x", "/", "/target/x"),
            ("climb/x", "/", "/x"),
            ("d/relative/..", "/", "/d"),
            ("", "/link", "/target"),
        ] {
            let links = [("/link", "/target"), ("/climb", "../../.."), ("/d/relative", "e")];
            assert_eq!(walk(path, directory, &links).unwrap(), expected, "{path} from {directory}");
        }
    }

    #[test]
    fn dot_dot_at_the_root_is_reported() {
        for (path, expected) in [("a/..", false), ("a/../..", true), ("../a", true), ("/", false)] {
            let mut walk = PathWalk::new(Path::new(path), Path::new("/"), LINKS_MAX);
            while walk.step().is_some() {}
            assert_eq!(walk.has_left_root(), expected, "{path}");
        }
    }

    #[test]
    fn link_loop_ends_in_an_error() {
        assert_eq!(walk("a", "/", &[("/a", "b"), ("/b", "a")]), Err(TooManyLinks));
    }
}
