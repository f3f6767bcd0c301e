//! Layer directories, stacked by a naive model of overlayfs, must give the merged tree of the layers.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use rcx_imagefs::tree::{NodeId, NodeSource, Tree};
use rcx_imagefs::unpack::{DirectoryNo, PlanName, UnpackPlan};

use support::layers::{Line, merge_lines, merge_text};

type Path = Vec<Vec<u8>>;

/// An entry of a layer directory.
#[derive(Debug, Clone, PartialEq, Eq)]
enum OverlayEntry {
    Directory {
        source: NodeSource,
        opaque: bool,
    },
    /// A name of any other file: its source, and the number of the file in the layer directory.
    Node {
        source: NodeSource,
        file: usize,
    },
    Whiteout,
}

/// A layer directory, as its plan describes it.
#[derive(Debug)]
struct LayerDirectory {
    entries: BTreeMap<Path, OverlayEntry>,
    /// The number of names of each file.
    names: HashMap<usize, u32>,
    replaces_all: bool,
}

impl LayerDirectory {
    fn write(plan: &UnpackPlan) -> Self {
        let mut paths: HashMap<DirectoryNo, Path> = HashMap::new();
        let mut entries = BTreeMap::new();
        let mut put = |path: Path, entry| assert!(entries.insert(path.clone(), entry).is_none(), "{path:?}");
        let place = |paths: &HashMap<DirectoryNo, Path>, name: &PlanName| {
            let mut path = paths[&name.directory].clone();
            path.push(name.name.to_vec());
            path
        };
        for (number, directory) in plan.numbered() {
            let path = match number {
                DirectoryNo::ROOT => Path::new(),
                _ => place(&paths, &directory.place),
            };
            paths.insert(number, path.clone());
            put(path, OverlayEntry::Directory { source: directory.source, opaque: directory.opaque });
        }
        let mut names = HashMap::new();
        for (file, node) in plan.nodes.iter().enumerate() {
            for name in &node.names {
                put(place(&paths, name), OverlayEntry::Node { source: node.source, file });
                *names.entry(file).or_insert(0) += 1;
            }
        }
        for name in &plan.whiteouts {
            put(place(&paths, name), OverlayEntry::Whiteout);
        }
        Self { entries, names, replaces_all: plan.replaces_all }
    }

    fn children<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Vec<u8>> {
        let inside = move |other: &&Path| other.len() == path.len() + 1 && other.starts_with(path);
        self.entries.keys().filter(inside).map(|child| child.last().expect("the path is not empty"))
    }
}

/// The visible tree: for each path its source and, except for directories, its layer directory, file number and link count.
type VisibleTree = BTreeMap<Path, (NodeSource, Option<(usize, usize, u32)>)>;

/// Stacks layer directories as overlayfs does, the topmost first.
fn stack_all(lowers: &[LayerDirectory]) -> VisibleTree {
    let cut = lowers.iter().position(|lower| lower.replaces_all).map_or(lowers.len(), |at| at + 1);
    let mut shown = VisibleTree::new();
    stack_directory(lowers, &(0..cut).collect::<Vec<_>>(), Path::new(), &mut shown);
    shown
}

fn stack_directory(lowers: &[LayerDirectory], merged: &[usize], path: Path, shown: &mut VisibleTree) {
    let OverlayEntry::Directory { source, .. } = lowers[merged[0]].entries[&path] else { panic!("{path:?}") };
    shown.insert(path.clone(), (source, None));
    let names: BTreeSet<&Vec<u8>> = merged.iter().flat_map(|at| lowers[*at].children(&path)).collect();
    for name in names {
        let mut child = path.clone();
        child.push(name.clone());
        let having: Vec<usize> =
            merged.iter().copied().filter(|at| lowers[*at].entries.contains_key(&child)).collect();
        match &lowers[having[0]].entries[&child] {
            // Without a directory to merge with, overlayfs would show the device itself.
            OverlayEntry::Whiteout => assert!(having.len() > 1, "the whiteout hides nothing: {child:?}"),
            OverlayEntry::Node { source, file } => {
                let nlink = lowers[having[0]].names[file];
                shown.insert(child, (*source, Some((having[0], *file, nlink))));
            }
            OverlayEntry::Directory { .. } => {
                let mut below = Vec::new();
                for at in having {
                    let OverlayEntry::Directory { opaque, .. } = lowers[at].entries[&child] else { break };
                    below.push(at);
                    if opaque {
                        break;
                    }
                }
                stack_directory(lowers, &below, child, shown);
            }
        }
    }
}

/// Compares the merged tree with the visible tree, path by path.
fn assert_shows(shown: &VisibleTree, tree: &Tree) {
    let mut open = vec![(NodeId::ROOT, Path::new())];
    let mut nodes: HashMap<NodeId, (usize, usize)> = HashMap::new();
    let mut count = 0;
    while let Some((node, path)) = open.pop() {
        count += 1;
        let (source, file) = shown.get(&path).unwrap_or_else(|| panic!("{path:?} is not visible"));
        assert_eq!(*source, tree.source(node), "{path:?}");
        match file {
            None => assert!(tree.is_directory(node), "{path:?}"),
            Some((layer, file, nlink)) => {
                assert!(!tree.is_directory(node), "{path:?}");
                assert_eq!(*nlink, tree.nlink(node), "links of {path:?}");
                assert_eq!(*nodes.entry(node).or_insert((*layer, *file)), (*layer, *file), "{path:?}");
            }
        }
        for (name, child) in tree.children(node) {
            open.push((child, [&path[..], &[name.to_vec()]].concat()));
        }
    }
    assert_eq!(count, shown.len(), "{shown:?}");
}

/// Plans one directory for each layer. A layer whose bit in `joined` is set shares a directory with the next layer.
fn compare(stack: &[Vec<Line>], joined: u8) {
    // Stacks that break a rule are tested by the merge.
    let trees: Result<Vec<_>, _> = (1..=stack.len()).map(|count| merge_lines(&stack[..count])).collect();
    let Ok(trees) = trees else { return };
    let mut lowers: Vec<LayerDirectory> = Vec::new();
    let mut last: Option<&Tree> = None;
    for (at, merged) in trees.iter().enumerate() {
        if at + 1 < trees.len() && joined >> at & 1 == 1 {
            continue;
        }
        let plan = match last {
            None => UnpackPlan::whole(&merged.tree),
            Some(last) => UnpackPlan::difference(&merged.tree, last),
        };
        last = Some(&merged.tree);
        if lowers.is_empty() || !plan.is_empty() {
            lowers.insert(0, LayerDirectory::write(&plan));
        }
        assert_shows(&stack_all(&lowers), &merged.tree);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stacked_layer_directories_give_the_merged_tree(stack in crate::stack(), joined: u8) {
        compare(&stack, joined);
    }
}

fn plan_of(layers: &str) -> UnpackPlan {
    let (lower, _) = layers.rsplit_once(" --- ").expect("two layers");
    let [upper, lower] = [layers, lower].map(|text| {
        merge_text(&text.replace(" --- ", "\n---\n").replace("; ", "\n"))
            .unwrap_or_else(|error| panic!("{error}"))
    });
    UnpackPlan::difference(&upper.tree, &lower.tree)
}

#[test]
fn whiteout_of_a_missing_name_is_not_planned() {
    assert!(plan_of("d a; f a/b --- w a/c; w x/y").is_empty());
}

#[test]
fn removal_through_a_symlink_is_planned_at_its_target() {
    let plan = plan_of("d usr; d usr/lib; f usr/lib/a; f usr/lib/b; l lib usr/lib --- w lib/a");
    assert_eq!(plan.whiteouts.len(), 1);
    assert_eq!(
        plan.directories.iter().map(|it| &*it.place.name).collect::<Vec<_>>(),
        [&b""[..], b"usr", b"lib"]
    );
}

#[test]
fn file_that_loses_a_name_is_written_with_its_remaining_names() {
    let plan = plan_of("f a 1; h b a; h c a; f kept --- w b");
    assert_eq!(plan.nodes.len(), 1);
    assert_eq!(plan.nodes[0].names.iter().map(|it| &*it.name).collect::<Vec<_>>(), [&b"a"[..], b"c"]);
    assert_eq!(plan.whiteouts.len(), 1);
}

#[test]
fn emptied_directory_gets_one_opaque_marker() {
    let many: String = (0..50).map(|n| format!("; f a/{n}")).collect();
    let plan = plan_of(&format!("d a{many} --- o a; f a/new"));
    assert!(plan.whiteouts.is_empty() && plan.directories[1].opaque);
}

#[test]
fn opaque_root_hides_all_lower_layers() {
    let plan = plan_of("f a; f b --- o /; f c");
    assert!(plan.replaces_all && plan.whiteouts.is_empty());
}
