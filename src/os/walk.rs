//! Following a path inside a root, one component at a time.
//!
//! The kernel can do this walk itself (`RESOLVE_IN_ROOT`) where the root is one directory. Where it is not, because parts of
//! it are mounted only later or because it is an archive, [`PathWalk`] keeps the part of the path that is still to be
//! walked and counts links; the caller looks up each component.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// Symbolic links that are followed in one path, as in the kernel (path_resolution(7), `MAXSYMLINKS`).
pub const LINKS_MAX: u32 = 40;

/// A path went through more symbolic links than the walk allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many symbolic links")]
pub struct TooManyLinks;

/// A walk from the root of a tree: the absolute path without links so far, and the components that are left.
///
/// `..` never leads above the root.
#[derive(Debug)]
pub struct PathWalk {
    at: PathBuf,
    rest: VecDeque<OsString>,
    links_left: u32,
}

impl PathWalk {
    /// Starts a walk of `path` at the root; a relative `path` starts at `directory`, which may contain links. At most
    /// `links_max` links are followed.
    #[must_use]
    pub fn new(path: &Path, directory: &Path, links_max: u32) -> Self {
        let mut walk = Self { at: PathBuf::from("/"), rest: VecDeque::new(), links_left: links_max };
        walk.queue(path);
        if path.is_relative() {
            walk.queue(directory);
        }
        walk
    }

    /// The path so far: absolute, and without links if the caller followed each one.
    #[must_use]
    pub fn at(&self) -> &Path {
        &self.at
    }

    /// The path so far.
    #[must_use]
    pub fn into_path(self) -> PathBuf {
        self.at
    }

    /// Goes on by one component and returns the new path; `None` at the end. The caller checks before this that the present
    /// path is a directory, and after it whether the new one is a link.
    pub fn step(&mut self) -> Option<&Path> {
        let name = self.rest.pop_front()?;
        if name == ".." {
            self.at.pop();
        } else {
            self.at.push(name);
        }
        Some(&self.at)
    }

    /// Replaces the component that was just walked, a link, by its target; the walk then stands at the directory from which
    /// the target is walked.
    ///
    /// # Errors
    ///
    /// The walk has followed as many links as it may.
    pub fn follow(&mut self, target: &Path) -> Result<(), TooManyLinks> {
        self.links_left = self.links_left.checked_sub(1).ok_or(TooManyLinks)?;
        self.at.pop();
        if target.is_absolute() {
            self.at = PathBuf::from("/");
        }
        self.queue(target);
        Ok(())
    }

    /// Puts the components of `path` before those that are left. `..` stays: its meaning depends on links before it.
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

    /// Walks `path` in a tree whose only links are `links`.
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
    fn paths_stay_inside_the_root() {
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
    fn circles_of_links_end() {
        assert_eq!(walk("a", "/", &[("/a", "b"), ("/b", "a")]), Err(TooManyLinks));
    }
}
