//! Differences of trees, put together again by a naive model of overlayfs: the tree that the layers give must come of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use rcx_imagefs::tree::{NodeId, NodeSource, Tree};
use rcx_imagefs::unpack::{DirectoryNo, PlanName, UnpackPlan};

use support::layers::{Line, merge_lines, merge_text};

type Path = Vec<Vec<u8>>;

/// What stands in one directory of an overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Thing {
    Directory {
        source: NodeSource,
        opaque: bool,
    },
    /// Anything else: where it comes from, and which file of the layer directory it is a name of.
    Node {
        source: NodeSource,
        file: usize,
    },
    Whiteout,
}

/// One lower directory, written as planned.
#[derive(Debug)]
struct LayerDirectory {
    things: BTreeMap<Path, Thing>,
    /// Names of each file.
    names: HashMap<usize, u32>,
    replaces_all: bool,
}

impl LayerDirectory {
    fn write(plan: &UnpackPlan) -> Self {
        let mut paths: HashMap<DirectoryNo, Path> = HashMap::new();
        let mut things = BTreeMap::new();
        let mut put = |path: Path, thing| assert!(things.insert(path.clone(), thing).is_none(), "{path:?}");
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
            put(path, Thing::Directory { source: directory.source, opaque: directory.opaque });
        }
        let mut names = HashMap::new();
        for (file, node) in plan.nodes.iter().enumerate() {
            for name in &node.names {
                put(place(&paths, name), Thing::Node { source: node.source, file });
                *names.entry(file).or_insert(0) += 1;
            }
        }
        for name in &plan.whiteouts {
            put(place(&paths, name), Thing::Whiteout);
        }
        Self { things, names, replaces_all: plan.replaces_all }
    }

    fn children<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Vec<u8>> {
        let inside = move |other: &&Path| other.len() == path.len() + 1 && other.starts_with(path);
        self.things.keys().filter(inside).map(|child| child.last().expect("it has a parent"))
    }
}

/// What is shown at a path: a directory, or a node as (layer directory, file of it) with its number of links.
type Shown = BTreeMap<Path, (NodeSource, Option<(usize, usize, u32)>)>;

/// Shows directories as overlayfs does; the topmost first.
fn show(lowers: &[LayerDirectory]) -> Shown {
    let cut = lowers.iter().position(|lower| lower.replaces_all).map_or(lowers.len(), |at| at + 1);
    let mut shown = Shown::new();
    show_directory(lowers, &(0..cut).collect::<Vec<_>>(), Path::new(), &mut shown);
    shown
}

fn show_directory(lowers: &[LayerDirectory], merged: &[usize], path: Path, shown: &mut Shown) {
    let Thing::Directory { source, .. } = lowers[merged[0]].things[&path] else { panic!("{path:?}") };
    shown.insert(path.clone(), (source, None));
    let names: BTreeSet<&Vec<u8>> = merged.iter().flat_map(|at| lowers[*at].children(&path)).collect();
    for name in names {
        let mut child = path.clone();
        child.push(name.clone());
        let having: Vec<usize> =
            merged.iter().copied().filter(|at| lowers[*at].things.contains_key(&child)).collect();
        match &lowers[having[0]].things[&child] {
            // overlayfs shows the device itself where there is nothing to merge with.
            Thing::Whiteout => assert!(having.len() > 1, "a whiteout hides nothing: {child:?}"),
            Thing::Node { source, file } => {
                let nlink = lowers[having[0]].names[file];
                shown.insert(child, (*source, Some((having[0], *file, nlink))));
            }
            Thing::Directory { .. } => {
                let mut below = Vec::new();
                for at in having {
                    let Thing::Directory { opaque, .. } = lowers[at].things[&child] else { break };
                    below.push(at);
                    if opaque {
                        break;
                    }
                }
                show_directory(lowers, &below, child, shown);
            }
        }
    }
}

/// The tree, path by path, compared with what overlayfs shows.
fn assert_shows(shown: &Shown, tree: &Tree) {
    let mut open = vec![(NodeId::ROOT, Path::new())];
    let mut nodes: HashMap<NodeId, (usize, usize)> = HashMap::new();
    let mut count = 0;
    while let Some((node, path)) = open.pop() {
        count += 1;
        let (source, file) = shown.get(&path).unwrap_or_else(|| panic!("{path:?} is not shown"));
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

/// Plans a directory for each layer, or for several layers where `joined` says that the layer goes with the next.
fn compare(stack: &[Vec<Line>], joined: u8) {
    // A stack that breaks a rule is the merge's business.
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
        assert_shows(&show(&lowers), &merged.tree);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn differences_put_together_by_overlayfs_give_the_tree(stack in crate::stack(), joined: u8) {
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
fn a_whiteout_of_nothing_is_not_planned() {
    assert!(plan_of("d a; f a/b --- w a/c; w x/y").is_empty());
}

#[test]
fn a_removal_below_a_link_is_planned_where_it_leads() {
    let plan = plan_of("d usr; d usr/lib; f usr/lib/a; f usr/lib/b; l lib usr/lib --- w lib/a");
    assert_eq!(plan.whiteouts.len(), 1);
    assert_eq!(
        plan.directories.iter().map(|it| &*it.place.name).collect::<Vec<_>>(),
        [&b""[..], b"usr", b"lib"]
    );
}

#[test]
fn a_file_that_loses_a_name_is_written_with_those_it_keeps() {
    let plan = plan_of("f a 1; h b a; h c a; f kept --- w b");
    assert_eq!(plan.nodes.len(), 1);
    assert_eq!(plan.nodes[0].names.iter().map(|it| &*it.name).collect::<Vec<_>>(), [&b"a"[..], b"c"]);
    assert_eq!(plan.whiteouts.len(), 1);
}

#[test]
fn a_directory_that_is_emptied_is_marked_once() {
    let many: String = (0..50).map(|n| format!("; f a/{n}")).collect();
    let plan = plan_of(&format!("d a{many} --- o a; f a/new"));
    assert!(plan.whiteouts.is_empty() && plan.directories[1].opaque);
}

#[test]
fn an_opaque_root_cuts_what_is_below() {
    let plan = plan_of("f a; f b --- o /; f c");
    assert!(plan.replaces_all && plan.whiteouts.is_empty());
}
