//! The mount's names: directories, images, tags and aliases, as an immutable snapshot of what the store publishes.
//!
//! ```text
//! host:5000/lab/python@sha256:<manifest>    an image: the root of its tree
//! host:5000/lab/python@sha256:<index>       symlink to it
//! host:5000/lab/python:3.12                 symlink to it
//! host-5000, python@sha256-<hex>, ...       aliases: symlinks to the name with `:`; they resolve and are not listed
//! ```
//!
//! The kernel keeps a directory at one place in its tree of names, so an image that is published under two names is a
//! directory under one of them and a symlink to that under the other.
//!
//! Inode numbers of names are hashes of kind, path and (of a link) target: whatever process serves the mount gives the
//! same number to the same name, and a tag that moves is another inode, so that no cached link target is ever stale.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use sha2::{Digest as _, Sha256};

use super::Ino;
use super::attr::NO_TIME;
use crate::image::ManifestDigest;
use crate::layer::Timestamp;

/// One reference of the store: a name for an image, with or without a tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The name in the mount: the familiar form, components joined by `/`.
    pub name: String,
    /// The tag, if the reference has one.
    pub tag: Option<String>,
    /// Digest of the index (the multi-platform document) through which the image was found, if there was one.
    pub index: Option<ManifestDigest>,
    /// The image.
    pub image: Image,
}

/// An image that the mount shows: a manifest and the slot that its inode numbers carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Image {
    /// Digest of its manifest.
    pub manifest: ManifestDigest,
    /// Its slot in the store, below [`Ino::SLOT_LIMIT`].
    pub slot: u32,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A directory of the namespace.
    Directory(Ino),
    /// A symbolic link of the namespace.
    Symlink(Ino),
    /// An image's root directory.
    Image(Image),
}

/// A node of the namespace.
#[derive(Debug)]
pub enum Node {
    /// A directory of names.
    Directory(Directory),
    /// A symbolic link within the namespace.
    Symlink(Symlink),
}

/// A directory of names.
#[derive(Debug)]
pub struct Directory {
    parent: Ino,
    path: String,
    mtime: Timestamp,
    /// Ascending by cookie.
    listed: Vec<(u64, Box<str>, Target)>,
    names: HashMap<Box<str>, Target>,
}

/// A symbolic link within the namespace.
#[derive(Debug)]
pub struct Symlink {
    target: Box<str>,
    mtime: Timestamp,
}

/// What the kernel has to forget when one namespace follows another.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Names that are gone or stand for something else now, with their directory; what lies deeper comes first.
    pub names: Vec<(Ino, Box<str>)>,
    /// Directories whose attributes or listing changed.
    pub directories: Vec<Ino>,
}

/// A snapshot of the mount's names.
#[derive(Debug)]
pub struct Namespace {
    nodes: HashMap<Ino, Node>,
    /// Where each image is a directory: the directory that holds it.
    homes: HashMap<u32, (Ino, Box<str>)>,
}

impl Default for Namespace {
    /// Nothing published, as the store has not been looked at.
    fn default() -> Self {
        Self::new(&[], NO_TIME, None)
    }
}

/// What is to stand at a path, while the snapshot is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Plan {
    Directory,
    Image(Image),
    /// Target relative to the link's directory.
    Symlink(String),
}

impl Namespace {
    /// Makes the snapshot that follows `previous`. `changed` is when the store's references last changed: directories that
    /// are not as they were take it as their mtime.
    ///
    /// Where two references claim one path, a directory of names wins over a tag, and the later reference over the earlier;
    /// an image under several names stays a directory where it was one in `previous`, or else is one under the first.
    #[must_use]
    pub fn new(published: &[Published], changed: Timestamp, previous: Option<&Self>) -> Self {
        Self::with_hash(published, changed, previous, path_hash)
    }

    fn with_hash(
        published: &[Published],
        changed: Timestamp,
        previous: Option<&Self>,
        hash: fn(&[&str]) -> u64,
    ) -> Self {
        let plans = plan(published, previous);
        let mut children: BTreeMap<&str, BTreeMap<&str, &Plan>> = BTreeMap::from([("", BTreeMap::new())]);
        for (path, plan) in &plans {
            let (parent, name) = split(path);
            children.entry(parent).or_default().insert(name, plan);
            if *plan == Plan::Directory {
                children.entry(path).or_default();
            }
        }
        let mut numbers = Numbers { hash, taken: HashSet::from([Ino::ROOT]) };
        let mut directories: BTreeMap<&str, Ino> = BTreeMap::from([("", Ino::ROOT)]);
        // Ascending, so that the numbers do not depend on the order of the references even where hashes collide.
        for path in children.keys().filter(|path| !path.is_empty()) {
            directories.insert(path, numbers.next(&["d", path]));
        }
        let mut namespace = Self { nodes: HashMap::new(), homes: HashMap::new() };
        for (&path, entries) in &children {
            let ino = directories[path];
            let parent = if path.is_empty() { Ino::ROOT } else { directories[split(path).0] };
            let mut directory = Directory {
                parent,
                path: path.to_owned(),
                mtime: changed,
                listed: Vec::with_capacity(entries.len()),
                names: HashMap::new(),
            };
            let aliases = aliases(entries);
            let links =
                aliases.iter().map(|(alias, name)| (alias.as_str(), Plan::Symlink((*name).to_owned())));
            let links: Vec<_> = links.collect();
            let all = entries.iter().map(|(name, plan)| (*name, *plan, true));
            for (name, plan, listed) in all.chain(links.iter().map(|(name, plan)| (*name, plan, false))) {
                let full = join(path, name);
                let (cookie, target) = match plan {
                    Plan::Directory => {
                        let ino = directories[full.as_str()];
                        (ino, Target::Directory(ino))
                    }
                    Plan::Image(image) => {
                        namespace.homes.insert(image.slot, (ino, name.into()));
                        (numbers.next(&["i", &full]), Target::Image(*image))
                    }
                    Plan::Symlink(target) => {
                        let link = numbers.next(&["l", &full, target]);
                        let symlink = Symlink { target: target.as_str().into(), mtime: changed };
                        namespace.nodes.insert(link, Node::Symlink(symlink));
                        (link, Target::Symlink(link))
                    }
                };
                directory.names.insert(name.into(), target);
                if listed {
                    directory.listed.push((cookie.get(), name.into(), target));
                }
            }
            directory.listed.sort_unstable_by_key(|(cookie, ..)| *cookie);
            namespace.nodes.insert(ino, Node::Directory(directory));
        }
        if let Some(previous) = previous {
            namespace.keep_times(previous);
        }
        namespace
    }

    /// A node by its number.
    #[must_use]
    pub fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The directory in which an image is a directory, and its name there.
    #[must_use]
    pub fn home(&self, image_slot: u32) -> Option<(Ino, &str)> {
        self.homes.get(&image_slot).map(|(parent, name)| (*parent, &**name))
    }

    /// The image with this slot, if it is published.
    #[must_use]
    pub fn image(&self, slot: u32) -> Option<Image> {
        let (parent, name) = self.home(slot)?;
        match self.node(parent)? {
            Node::Directory(directory) => match directory.lookup(name.as_bytes())? {
                Target::Image(image) => Some(image),
                Target::Directory(_) | Target::Symlink(_) => None,
            },
            Node::Symlink(_) => None,
        }
    }

    /// How many images are published.
    #[must_use]
    pub fn image_count(&self) -> usize {
        self.homes.len()
    }

    /// Path of an image's directory in the mount, without a leading `/`.
    #[must_use]
    pub fn path_of(&self, image_slot: u32) -> Option<String> {
        let (parent, name) = self.home(image_slot)?;
        match self.node(parent)? {
            Node::Directory(directory) => Some(join(&directory.path, name)),
            Node::Symlink(_) => None,
        }
    }

    /// What the kernel, which may have cached anything that `old` answered, must forget when `self` answers from now on.
    /// Names that did not resolve are never cached, so a name that is only new is no change.
    #[must_use]
    pub fn changes_since(&self, old: &Self) -> Changes {
        let mut changes = Changes::default();
        let mut depths: Vec<(Reverse<usize>, &str, Ino, Box<str>)> = Vec::new();
        for (&ino, node) in &old.nodes {
            let Node::Directory(before) = node else { continue };
            let after = match self.nodes.get(&ino) {
                Some(Node::Directory(after)) => Some(after),
                Some(Node::Symlink(_)) | None => None,
            };
            for (name, target) in &before.names {
                if after.and_then(|after| after.names.get(name)) != Some(target) {
                    let depth = before.path.split('/').count() + usize::from(!before.path.is_empty());
                    depths.push((Reverse(depth), &before.path, ino, name.clone()));
                }
            }
            if after.is_some_and(|after| after.listed != before.listed) {
                changes.directories.push(ino);
            }
        }
        depths.sort_unstable();
        changes.names = depths.into_iter().map(|(_, _, parent, name)| (parent, name)).collect();
        changes.directories.sort_unstable();
        changes
    }

    /// Gives what did not change the time that it had, and what did a later one: by it the kernel tells that the listing
    /// that it has cached is an old one (`fuse_readdir_cached`, fs/fuse/readdir.c).
    fn keep_times(&mut self, previous: &Self) {
        for (ino, node) in &mut self.nodes {
            match (node, previous.nodes.get(ino)) {
                (Node::Directory(now), Some(Node::Directory(before))) => {
                    if now.listed == before.listed && before.mtime != NO_TIME {
                        now.mtime = before.mtime;
                    } else if now.mtime <= before.mtime {
                        now.mtime = just_after(before.mtime);
                    }
                }
                // The number of a link is a hash of all that it is.
                (Node::Symlink(now), Some(Node::Symlink(before))) => now.mtime = before.mtime,
                _ => {}
            }
        }
    }
}

impl Directory {
    /// What a name in this directory stands for, aliases included.
    #[must_use]
    pub fn lookup(&self, name: &[u8]) -> Option<Target> {
        self.names.get(std::str::from_utf8(name).ok()?).copied()
    }

    /// The directory above; the root's is the root.
    #[must_use]
    pub fn parent(&self) -> Ino {
        self.parent
    }

    /// When a name came or went last, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }

    /// Links that a directory has: its name, its `.`, and the `..` of each directory in it.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        let directories = self.listed.iter().filter(|(.., target)| !matches!(target, Target::Symlink(_)));
        u32::try_from(directories.count()).unwrap_or(u32::MAX - 2) + 2
    }

    /// The names behind `cookie` with their own cookies, in an order that does not depend on what else is published.
    /// Cookies are greater than any small number, so 0 to 2 stand for the start.
    pub fn listed_after(&self, cookie: u64) -> impl Iterator<Item = (u64, &str, Target)> {
        let from = self.listed.partition_point(|(at, ..)| *at <= cookie);
        self.listed[from..].iter().map(|(cookie, name, target)| (*cookie, &**name, *target))
    }
}

impl Symlink {
    /// What the link holds: a path relative to its directory.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// When it came, as far as this process knows.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        self.mtime
    }
}

/// Hands out numbers, another one where a hash is taken.
struct Numbers {
    hash: fn(&[&str]) -> u64,
    taken: HashSet<Ino>,
}

impl Numbers {
    fn next(&mut self, parts: &[&str]) -> Ino {
        let first = (self.hash)(parts);
        (0..)
            .map(|step| Ino::of_namespace(first.wrapping_add(step)))
            .find(|ino| self.taken.insert(*ino))
            .expect("there are more numbers than names")
    }
}

fn path_hash(parts: &[&str]) -> u64 {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
        hasher.update([0]);
    }
    let hash: [u8; 32] = hasher.finalize().into();
    u64::from_le_bytes(hash[..8].try_into().expect("8 of 32 bytes"))
}

fn just_after(time: Timestamp) -> Timestamp {
    match time.nsec {
        999_999_999 => Timestamp { sec: time.sec.saturating_add(1), nsec: 0 },
        nsec => Timestamp { nsec: nsec + 1, ..time },
    }
}

/// Decides what stands at each path.
fn plan(published: &[Published], previous: Option<&Namespace>) -> BTreeMap<String, Plan> {
    let digest_path = |name: &str, digest: &ManifestDigest| format!("{name}@{digest}");
    // Where each image is a directory.
    let mut homes: HashMap<u32, String> = HashMap::new();
    let paths: BTreeSet<(u32, String)> = published
        .iter()
        .map(|published| (published.image.slot, digest_path(&published.name, &published.image.manifest)))
        .collect();
    for published in published {
        let slot = published.image.slot;
        let kept = previous.and_then(|previous| previous.path_of(slot));
        let kept = kept.filter(|path| paths.contains(&(slot, path.clone())));
        let first = || digest_path(&published.name, &published.image.manifest);
        homes.entry(slot).or_insert_with(|| kept.unwrap_or_else(first));
    }
    let mut plans = BTreeMap::new();
    for published in published {
        let home = &homes[&published.image.slot];
        let own = digest_path(&published.name, &published.image.manifest);
        let (directory, own_name) = split(&own);
        if let Some(tag) = &published.tag {
            let path = format!("{}:{tag}", published.name);
            plans.insert(path, Plan::Symlink(own_name.to_owned()));
        }
        if let Some(index) = published.index.filter(|index| *index != published.image.manifest) {
            plans.insert(digest_path(&published.name, &index), Plan::Symlink(own_name.to_owned()));
        }
        let image = match own == *home {
            true => Plan::Image(published.image),
            false => Plan::Symlink(relative(directory, home)),
        };
        plans.insert(own, image);
    }
    // Last, so that a directory of names wins: a repository's images are reached through it.
    for published in published {
        let mut path = published.name.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            plans.insert(parent.to_owned(), Plan::Directory);
            path = parent;
        }
    }
    plans
}

/// For each name with a `:` the spelling with `-`, unless that is a name of its own. Where two names have one alias, it is
/// that of the lesser.
fn aliases<'a>(entries: &BTreeMap<&'a str, &Plan>) -> BTreeMap<String, &'a str> {
    let mut aliases = BTreeMap::new();
    for &name in entries.keys().filter(|name| name.contains(':')) {
        let alias = name.replace(':', "-");
        if !entries.contains_key(alias.as_str()) {
            aliases.entry(alias).or_insert(name);
        }
    }
    aliases
}

/// A path's directory and last component.
fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// The link target that leads from a directory of the namespace to a path of it.
fn relative(directory: &str, path: &str) -> String {
    let ups = if directory.is_empty() { 0 } else { directory.split('/').count() };
    "../".repeat(ups) + path
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    fn digest(seed: &str) -> ManifestDigest {
        ManifestDigest::new(Digest::of(seed.as_bytes()))
    }

    fn image(slot: u32) -> Image {
        Image { manifest: digest(&slot.to_string()), slot }
    }

    fn at(sec: i64) -> Timestamp {
        Timestamp { sec, nsec: 0 }
    }

    /// `name[:tag]` as slot `slot`.
    fn publish(reference: &str, slot: u32) -> Published {
        let (name, tag) = match reference.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_owned())),
            _ => (reference, None),
        };
        Published { name: name.to_owned(), tag, index: None, image: image(slot) }
    }

    fn publish_index(name: &str, index: &str, slot: u32) -> Published {
        Published { index: Some(digest(index)), ..publish(name, slot) }
    }

    fn namespace(published: &[Published]) -> Namespace {
        Namespace::new(published, at(1), None)
    }

    fn directory(namespace: &Namespace, ino: Ino) -> &Directory {
        match namespace.node(ino) {
            Some(Node::Directory(directory)) => directory,
            other => panic!("{ino}: {other:?}"),
        }
    }

    /// Walks a path as the kernel does, through links; what it ends at.
    fn resolve(namespace: &Namespace, path: &str) -> Option<Target> {
        let mut at = Ino::ROOT;
        let mut target = Target::Directory(Ino::ROOT);
        let mut rest: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        while let Some(name) = rest.pop() {
            let here = directory(namespace, at);
            target = match name.as_str() {
                ".." => Target::Directory(here.parent()),
                name => here.lookup(name.as_bytes())?,
            };
            match target {
                Target::Directory(ino) => at = ino,
                Target::Image(_) => assert!(rest.is_empty()),
                Target::Symlink(ino) => match namespace.node(ino) {
                    Some(Node::Symlink(link)) => {
                        rest.extend(link.target().split('/').rev().map(str::to_owned));
                    }
                    other => panic!("{other:?}"),
                },
            }
        }
        Some(target)
    }

    fn listing(namespace: &Namespace, path: &str) -> Vec<String> {
        let Some(Target::Directory(ino)) =
            (if path.is_empty() { Some(Target::Directory(Ino::ROOT)) } else { resolve(namespace, path) })
        else {
            panic!("{path} is not a directory")
        };
        let mut names: Vec<_> =
            directory(namespace, ino).listed_after(0).map(|(_, name, _)| name.to_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn names_with_slashes_and_ports_are_directories_and_tags_are_links() {
        let namespace = namespace(&[
            publish("python:3.12", 1),
            publish("host:5000/lab/python:3.12", 2),
            publish_index("host:5000/lab/gcc", "an index", 3),
        ]);
        let of = |slot| Some(Target::Image(image(slot)));
        let python = format!("python@{}", digest("1"));
        assert_eq!(listing(&namespace, ""), ["host:5000", "python:3.12", &python]);
        assert_eq!(listing(&namespace, "host:5000"), ["lab"]);
        assert_eq!(listing(&namespace, "host:5000/lab").len(), 4);
        assert_eq!(resolve(&namespace, &python), of(1));
        assert_eq!(resolve(&namespace, "python:3.12"), of(1));
        assert_eq!(resolve(&namespace, "host:5000/lab/python:3.12"), of(2));
        assert_eq!(resolve(&namespace, &format!("host:5000/lab/gcc@{}", digest("an index"))), of(3));
        assert_eq!(resolve(&namespace, "host:5000/lab/gcc"), None);
        assert_eq!(resolve(&namespace, "unknown"), None);
        assert_eq!(namespace.image_count(), 3);
    }

    #[test]
    fn names_with_a_colon_resolve_with_a_dash_and_are_not_listed() {
        let namespace = namespace(&[publish("host:5000/python:3.12", 1)]);
        let of = Some(Target::Image(image(1)));
        assert_eq!(resolve(&namespace, "host-5000/python-3.12"), of);
        assert_eq!(resolve(&namespace, "host:5000/python-3.12"), of);
        assert_eq!(resolve(&namespace, &format!("host-5000/python@sha256-{}", digest("1").hex())), of);
        assert_eq!(listing(&namespace, ""), ["host:5000"]);
        assert_eq!(listing(&namespace, "host:5000").len(), 2);
    }

    #[test]
    fn real_name_wins_over_an_alias() {
        let namespace = namespace(&[publish("host:5000/python:1", 1), publish("host-5000/python:1", 2)]);
        assert_eq!(resolve(&namespace, "host-5000/python:1"), Some(Target::Image(image(2))));
        assert_eq!(resolve(&namespace, "host:5000/python:1"), Some(Target::Image(image(1))));
    }

    #[test]
    fn directory_of_names_wins_over_a_tag_of_the_same_spelling() {
        let namespace = namespace(&[publish("host:5000", 1), publish("host:5000/python:1", 2)]);
        assert_eq!(resolve(&namespace, "host:5000/python:1"), Some(Target::Image(image(2))));
        assert_eq!(resolve(&namespace, &format!("host@{}", digest("1"))), Some(Target::Image(image(1))));
    }

    #[test]
    fn image_with_two_names_is_one_directory_and_stays_where_it_is() {
        let digest = digest("1");
        let zoo = publish("zoo/python:1", 1);
        let lab = publish("lab/sub/python:1", 1);
        let first = namespace(std::slice::from_ref(&zoo));
        let both = Namespace::new(&[lab.clone(), zoo], at(2), Some(&first));
        assert_eq!(both.path_of(1), Some(format!("zoo/python@{digest}")));
        for path in
            [format!("lab/sub/python@{digest}"), "lab/sub/python:1".to_owned(), "zoo/python:1".to_owned()]
        {
            assert_eq!(resolve(&both, &path), Some(Target::Image(image(1))), "{path}");
        }
        assert!(both.changes_since(&first).names.is_empty());
        let last = Namespace::new(&[lab], at(3), Some(&both));
        assert_eq!(last.path_of(1), Some(format!("lab/sub/python@{digest}")));
        assert_eq!(resolve(&last, "zoo/python:1"), None);
    }

    #[test]
    fn numbers_depend_on_the_names_alone() {
        let python = publish("host:5000/python:1", 1);
        let alone = namespace(std::slice::from_ref(&python));
        let others = Namespace::new(&[publish("a/b:2", 2), python, publish("host:5000/z:3", 3)], at(9), None);
        for path in ["host:5000", "host-5000"] {
            let of = |namespace: &Namespace| directory(namespace, Ino::ROOT).lookup(path.as_bytes()).unwrap();
            assert_eq!(of(&alone), of(&others), "{path}");
        }
    }

    #[test]
    fn colliding_hashes_still_give_every_name_a_number_of_its_own() {
        let published = [publish("a/b:1", 1), publish("c:2", 2)];
        let namespace = Namespace::with_hash(&published, at(1), None, |_| 7);
        assert_eq!(resolve(&namespace, "a/b:1"), Some(Target::Image(image(1))));
        assert_eq!(resolve(&namespace, "c-2"), Some(Target::Image(image(2))));
        assert_eq!(listing(&namespace, "").len(), 3);
    }

    #[test]
    fn moved_tag_is_the_only_thing_the_kernel_must_forget() {
        let before = namespace(&[publish("python:3", 1), publish("python", 2), publish("gcc:1", 3)]);
        let now = [publish("python", 1), publish("python:3", 2), publish("gcc:1", 3)];
        let after = Namespace::new(&now, at(2), Some(&before));
        let changes = after.changes_since(&before);
        let mut names: Vec<_> = changes.names.iter().map(|(ino, name)| (*ino, &**name)).collect();
        names.sort();
        // The alias leads to the tag, which it still does.
        assert_eq!(names, [(Ino::ROOT, "python:3")]);
        assert_eq!(changes.directories, [Ino::ROOT]);
        assert_eq!(resolve(&after, "python-3"), Some(Target::Image(image(2))));
    }

    #[test]
    fn removed_image_is_forgotten_from_the_deepest_name_up() {
        let before = namespace(&[publish("a/b/c:1", 1), publish("d:1", 2)]);
        let after = Namespace::new(&[publish("d:1", 2)], at(2), Some(&before));
        let changes = after.changes_since(&before);
        let names: Vec<_> = changes.names.iter().map(|(_, name)| &**name).collect();
        assert_eq!(names.len(), 2 + 4);
        assert_eq!(names[4..], ["b", "a"]);
        assert_eq!(changes.directories, [Ino::ROOT]);
    }

    #[test]
    fn new_name_makes_the_kernel_forget_its_directory_and_nothing_else() {
        let before = namespace(&[publish("a/b:1", 1)]);
        let after = Namespace::new(&[publish("a/b:1", 1), publish("c:1", 2)], at(2), Some(&before));
        assert_eq!(after.changes_since(&before), Changes { names: Vec::new(), directories: vec![Ino::ROOT] });
        assert_eq!(after.changes_since(&after), Changes::default());
    }

    #[test]
    fn only_what_changed_takes_a_new_time() {
        let before = namespace(&[publish("a/b:1", 1)]);
        let after = Namespace::new(&[publish("a/b:1", 1), publish("c:1", 2)], at(2), Some(&before));
        let Some(Target::Directory(a)) = resolve(&after, "a") else { panic!() };
        assert_eq!(directory(&after, a).mtime(), at(1));
        assert_eq!(directory(&after, Ino::ROOT).mtime(), at(2));
        // Twice within one tick of the clock, or with a clock that was set back.
        let third = Namespace::new(&[publish("c:1", 2)], at(2), Some(&after));
        assert_eq!(directory(&third, Ino::ROOT).mtime(), Timestamp { sec: 2, nsec: 1 });
    }

    #[test]
    fn listing_goes_on_where_it_was_when_names_come_and_go() {
        let published: Vec<_> = (0..20).map(|n| publish(&format!("image{n}"), n)).collect();
        let before = namespace(&published);
        let half: Vec<_> = directory(&before, Ino::ROOT).listed_after(0).take(10).collect();
        let cookie = half[9].0;
        // Of what was listed, every second goes; others come.
        let mut now: Vec<_> = published
            .iter()
            .filter(|p| half.iter().step_by(2).all(|(_, name, _)| !name.starts_with(&format!("{}@", p.name))))
            .cloned()
            .collect();
        now.extend((20..30).map(|n| publish(&format!("image{n}"), n)));
        let after = Namespace::new(&now, at(2), Some(&before));
        let rest: Vec<_> =
            directory(&after, Ino::ROOT).listed_after(cookie).map(|(_, name, _)| name).collect();
        for (_, name, _) in directory(&before, Ino::ROOT).listed_after(cookie) {
            assert_eq!(rest.iter().filter(|seen| **seen == name).count(), 1, "{name}");
        }
        for (_, name, _) in &half {
            assert!(!rest.contains(name), "{name} twice");
        }
    }

    #[test]
    fn directory_counts_its_directories_as_links() {
        let namespace = namespace(&[publish("a/b:1", 1), publish("c:1", 2)]);
        // a and c@sha256:..., not c:1.
        assert_eq!(directory(&namespace, Ino::ROOT).nlink(), 2 + 2);
        assert_eq!(Namespace::default().image_count(), 0);
    }
}
