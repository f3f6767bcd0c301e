//! The reference model: the rules of layer application in their simplest form, as a list of paths that is searched from the start
//! each time.

use std::rc::Rc;

use crate::layers::{EntryKind, Line};

/// The components of a path from the root, none of which is a symlink.
type Path = Vec<Vec<u8>>;

/// The tree of a sequence of layers. Hard links share one line.
#[derive(Debug, Clone)]
pub struct Model {
    names: Vec<(Path, Rc<Line>)>,
}

/// Why a path cannot be followed.
enum PathError {
    /// More than 40 symlinks.
    Loop,
    /// A component is neither a directory nor a symlink that can be followed.
    Blocked,
}

impl Model {
    /// Applies layers, from the lowest up.
    ///
    /// # Errors
    /// The number of the layer and of its line that break a rule.
    pub fn merge(stack: &[Vec<Line>]) -> Result<Self, (usize, usize)> {
        let mut model = Self { names: vec![(Path::new(), Rc::new(Line::new(b"", EntryKind::Directory)))] };
        for (number, layer) in stack.iter().enumerate() {
            let (mut markers, entries): (Vec<_>, Vec<_>) = layer
                .iter()
                .enumerate()
                .partition(|(_, line)| matches!(line.kind, EntryKind::Whiteout | EntryKind::Opaque));
            markers.sort_by_key(|(_, line)| (normal(&line.path).join(&b'/'), line.kind == EntryKind::Opaque));
            let replaced = model.replaced(layer);
            for (position, line) in markers {
                model.hide(line, &replaced).map_err(|()| (number, position))?;
            }
            for (position, line) in entries {
                let applied = model.apply(line);
                // A leftover of AUFS that cannot be applied is missing for the links to it.
                if !is_leftover(&normal(&line.path)) {
                    applied.map_err(|()| (number, position))?;
                }
            }
            model.names.retain(|(path, _)| !is_leftover(path));
        }
        Ok(model)
    }

    fn at(&self, path: &[Vec<u8>]) -> Option<&Rc<Line>> {
        self.names.iter().find(|(other, _)| other == path).map(|(_, node)| node)
    }

    fn is_directory(&self, path: &[Vec<u8>]) -> bool {
        self.at(path).is_some_and(|node| node.kind == EntryKind::Directory)
    }

    /// Follows a path with all symlinks. The result need not exist.
    fn follow(
        &self,
        from: Path,
        path: &[u8],
        replaced: &[Path],
        links: &mut usize,
    ) -> Result<Path, PathError> {
        let mut at = if path.starts_with(b"/") { Path::new() } else { from };
        for name in path.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            if name == b".." {
                at.pop();
                continue;
            }
            let directory = at.clone();
            at.push(name.to_vec());
            match self.at(&at).map(|node| &node.kind) {
                None | Some(EntryKind::Directory) => {}
                Some(EntryKind::Symlink(_)) if replaced.contains(&at) => return Err(PathError::Blocked),
                Some(EntryKind::Symlink(target)) => {
                    *links += 1;
                    if *links > 40 {
                        return Err(PathError::Loop);
                    }
                    at = self.follow(directory, target, replaced, links)?;
                }
                Some(_) => return Err(PathError::Blocked),
            }
        }
        Ok(at)
    }

    /// Follows a path except for its last component.
    fn locate(&self, path: &[u8], replaced: &[Path]) -> Result<Path, PathError> {
        let mut path = normal(path);
        let name = path.pop();
        let mut at = self.follow(Path::new(), &path.join(&b'/'), replaced, &mut 0)?;
        at.extend(name);
        Ok(at)
    }

    fn remove(&mut self, path: &[Vec<u8>]) {
        self.names.retain(|(other, _)| !other.starts_with(path));
    }

    /// The symlinks that are replaced by directories of a layer.
    fn replaced(&self, layer: &[Line]) -> Vec<Path> {
        let mut lines: Vec<_> = layer.iter().filter(|line| line.kind == EntryKind::Directory).collect();
        lines.sort_by_key(|line| normal(&line.path).join(&b'/'));
        let mut replaced = Vec::new();
        for line in lines {
            if let Ok(path) = self.locate(&line.path, &replaced)
                && self.at(&path).is_some_and(|node| matches!(node.kind, EntryKind::Symlink(_)))
            {
                replaced.push(path);
            }
        }
        replaced
    }

    fn hide(&mut self, line: &Line, replaced: &[Path]) -> Result<(), ()> {
        let path = match line.kind {
            EntryKind::Opaque => self.follow(Path::new(), &normal(&line.path).join(&b'/'), replaced, &mut 0),
            _ => self.locate(&line.path, replaced),
        };
        match path {
            Err(PathError::Loop) => return Err(()),
            Err(PathError::Blocked) => {}
            Ok(path) if line.kind == EntryKind::Opaque => {
                if self.is_directory(&path) {
                    self.names.retain(|(other, _)| !other.starts_with(&path) || *other == path);
                }
            }
            Ok(path) => self.remove(&path),
        }
        Ok(())
    }

    fn apply(&mut self, line: &Line) -> Result<(), ()> {
        let path = self.locate(&line.path, &[]).map_err(|_| ())?;
        // The target of a symlink may have longer names than a file can.
        let (_, parents) = path.split_last().unwrap_or((&Vec::new(), &[]));
        if parents.iter().any(|name| name.len() > 255) {
            return Err(());
        }
        for length in 1..path.len() {
            if self.at(&path[..length]).is_none() {
                self.names.push((path[..length].to_vec(), Rc::new(Line::new(b"", EntryKind::Directory))));
            }
        }
        if line.kind == EntryKind::Directory && self.is_directory(&path) {
            self.names.retain(|(other, _)| *other != path);
        } else {
            self.remove(&path);
        }
        let node = match &line.kind {
            EntryKind::Hardlink(target) => {
                let target = self.locate(target, &[]).map_err(|_| ())?;
                let node = self.at(&target).ok_or(())?;
                if node.kind == EntryKind::Directory {
                    return Err(());
                }
                Rc::clone(node)
            }
            _ => Rc::new(line.clone()),
        };
        self.names.push((path, node));
        Ok(())
    }

    /// The tree as the lines of a dump.
    pub fn lines(&self) -> Vec<Line> {
        let mut names = self.names.clone();
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut lines = Vec::new();
        for (position, (path, node)) in names.iter().enumerate() {
            let path = path.join(&b'/');
            let line = match names[..position].iter().find(|(_, other)| Rc::ptr_eq(other, node)) {
                Some((first, _)) => Line::new(&path, EntryKind::Hardlink(first.join(&b'/'))),
                None => Line { path, ..Line::clone(node) },
            };
            match line {
                root if root == Line::new(b"", EntryKind::Directory) => {}
                root if root.path.is_empty() => lines.push(Line { path: b"/".to_vec(), ..root }),
                line => lines.push(line),
            }
        }
        lines
    }

    /// Every path, with a number that identifies its node, and the link count of the node.
    pub fn paths(&self) -> Vec<(Path, usize, usize)> {
        let mut paths = Vec::new();
        for (path, node) in &self.names {
            let same = |(_, other): &&(Path, Rc<Line>)| Rc::ptr_eq(other, node);
            let subdirectory = |(other, node): &&(Path, Rc<Line>)| {
                other.len() == path.len() + 1 && other.starts_with(path) && node.kind == EntryKind::Directory
            };
            let number = self.names.iter().position(|name| same(&name)).unwrap();
            let nlink = match node.kind {
                EntryKind::Directory => 2 + self.names.iter().filter(subdirectory).count(),
                _ => self.names.iter().filter(same).count(),
            };
            paths.push((path.clone(), number, nlink));
        }
        paths
    }
}

/// Whether a path is below a leftover of AUFS, or is one.
fn is_leftover(path: &[Vec<u8>]) -> bool {
    path.iter().any(|name| name.starts_with(b".wh..wh."))
}

/// Splits a path into components, without empty ones and `.`, and with `..` resolved by text.
pub fn normal(path: &[u8]) -> Path {
    let mut normal = Path::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(normal.pop()),
            name => normal.push(name.to_vec()),
        }
    }
    normal
}
