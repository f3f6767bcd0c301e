//! Packs a merged tree: numbers the reachable nodes, sorts the names, and drops unreachable nodes.

use super::draft::MergeState;
use super::{MergeFault, NodeId, Tree, TreeChild, TreeDirectory};

impl MergeState<'_> {
    /// Numbers the nodes that can be reached from the root, and packs them.
    pub(super) fn freeze(self) -> Result<Tree, MergeFault> {
        let too_many = |_| MergeFault::TooMany("nodes");
        let ranks = self.ranks();
        let mut edges: Vec<(u32, u32, u32)> =
            self.children.iter().map(|(&(directory, name), &node)| (directory, name, node)).collect();
        edges.sort_unstable_by_key(|&(directory, name, _)| (directory, ranks[name as usize]));

        let mut text = Vec::new();
        let mut text_at = vec![u32::MAX; self.names.len()];
        let mut children = Vec::new();
        let mut directories = Vec::new();
        // For each draft, its number among the directories or among the other nodes.
        let mut number = vec![u32::MAX; self.drafts.len()];
        let mut queue = vec![(self.root, NodeId::ROOT)];
        let mut others: Vec<(u32, u32)> = Vec::new();
        number[self.root as usize] = 0;
        while let Some(&(draft, parent)) = queue.get(directories.len()) {
            let node = NodeId(u32::try_from(directories.len()).map_err(too_many)?);
            let first = u32::try_from(children.len()).map_err(too_many)?;
            let start = edges.partition_point(|&(directory, ..)| directory < draft);
            let mut subdirectories = 0;
            for &(_, name, child) in edges[start..].iter().take_while(|&&(directory, ..)| directory == draft)
            {
                let at = &mut text_at[name as usize];
                if *at == u32::MAX {
                    let name = self.names[name as usize];
                    *at = u32::try_from(text.len()).map_err(|_| MergeFault::TooMany("names"))?;
                    text.push(u8::try_from(name.len()).map_err(|_| MergeFault::LongName(name.len()))?);
                    text.extend_from_slice(name);
                }
                // Replaced by the final number below, when the number of directories is known.
                children.push(TreeChild { name: *at, node: NodeId(child) });
                let number = &mut number[child as usize];
                if self.is_directory(child) {
                    subdirectories += 1;
                    *number = u32::try_from(queue.len()).map_err(too_many)?;
                    queue.push((child, node));
                } else if *number == u32::MAX {
                    *number = u32::try_from(others.len()).map_err(too_many)?;
                    others.push((child, 1));
                } else {
                    others[*number as usize].1 += 1;
                }
            }
            directories.push(TreeDirectory { first, parent, subdirectories });
        }
        let directory_count = u32::try_from(directories.len()).map_err(too_many)?;
        let end = u32::try_from(children.len()).map_err(too_many)?;
        directories.push(TreeDirectory { first: end, parent: NodeId::ROOT, subdirectories: 0 });
        // This check ensures that no number below overflows.
        u32::try_from(queue.len() + others.len()).map_err(too_many)?;
        for child in &mut children {
            let draft = child.node.get();
            let shift = if self.is_directory(draft) { 0 } else { directory_count };
            child.node = NodeId(number[draft as usize] + shift);
        }
        let sources = || {
            let drafts = queue.iter().map(|(draft, _)| draft).chain(others.iter().map(|(draft, _)| draft));
            drafts.map(|draft| self.draft(*draft))
        };
        Ok(Tree {
            names: text.into(),
            children: children.into(),
            directories: directories.into(),
            layers: sources().map(|draft| draft.layer).collect(),
            entries: sources().map(|draft| draft.entry).collect(),
            links: (directory_count..)
                .zip(&others)
                .filter(|(_, (_, names))| *names > 1)
                .map(|(number, (_, names))| (NodeId(number), *names))
                .collect(),
        })
    }

    /// The rank of each name in the order of all names.
    fn ranks(&self) -> Vec<u32> {
        let mut sorted: Vec<u32> = (0..).take(self.names.len()).collect();
        sorted.sort_unstable_by_key(|&name| self.names[name as usize]);
        let mut ranks = vec![0; sorted.len()];
        for (rank, name) in (0..).zip(sorted) {
            ranks[name as usize] = rank;
        }
        ranks
    }
}
