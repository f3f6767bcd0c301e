//! Plans the node at each path of the mount.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Namespace, PublishedImage, PublishedReference};
use crate::image::ManifestDigest;

/// The node for a path of a new snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PlannedNode {
    Directory,
    Image(PublishedImage),
    /// A symlink with its target, relative to the link's directory.
    Symlink(String),
}

/// Plans the node at each path. See [`Namespace::new`] for the rules.
pub(super) fn plan(
    published: &[PublishedReference],
    previous: Option<&Namespace>,
) -> BTreeMap<String, PlannedNode> {
    let digest_path = |name: &str, digest: &ManifestDigest| format!("{name}@{digest}");
    // For each image, the path at which it is a directory.
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
            plans.insert(path, PlannedNode::Symlink(own_name.to_owned()));
        }
        if let Some(index) = published.index.filter(|index| *index != published.image.manifest) {
            plans.insert(digest_path(&published.name, &index), PlannedNode::Symlink(own_name.to_owned()));
        }
        let image = match own == *home {
            true => PlannedNode::Image(published.image),
            false => PlannedNode::Symlink(relative(directory, home)),
        };
        plans.insert(own, image);
    }
    // Directories come last, so that a directory of names replaces a tag with the same path: images are reached through the
    // directory.
    for published in published {
        let mut path = published.name.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            plans.insert(parent.to_owned(), PlannedNode::Directory);
            path = parent;
        }
    }
    plans
}

/// Returns the alias with `-` for each name with a `:`, unless another name is spelled like the alias. If two names have the
/// same alias, it refers to the lesser name.
pub(super) fn aliases<'a>(entries: &BTreeMap<&'a str, &PlannedNode>) -> BTreeMap<String, &'a str> {
    let mut aliases = BTreeMap::new();
    for &name in entries.keys().filter(|name| name.contains(':')) {
        let alias = name.replace(':', "-");
        if !entries.contains_key(alias.as_str()) {
            aliases.entry(alias).or_insert(name);
        }
    }
    aliases
}

/// Splits a path into its directory and its last component.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

pub(super) fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// Returns the target of a link in `directory` that leads to `path`.
fn relative(directory: &str, path: &str) -> String {
    let ups = if directory.is_empty() { 0 } else { directory.split('/').count() };
    "../".repeat(ups) + path
}
