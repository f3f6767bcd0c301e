//! Divides the chain of an image's layers into layer directories.

use crate::image::{DiffId, Digest};

/// Maximum number of lower directories of an image. overlayfs supports 500 (fs/overlayfs/params.h, `OVL_MAX_STACK`), and looks
/// up a missing name in each of them. In an image with more layers, one directory holds several layers.
const STACK_MAX: usize = 250;

/// One layer directory of an image. It contains the layers `from..to`, counted from the lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChainStep {
    pub(super) from: usize,
    pub(super) to: usize,
    /// The name of the directory.
    pub(super) id: Digest,
}

/// Returns the layer directories for layers with these diff IDs, lowest first.
///
/// The diff IDs must be verified before the directories are read or written: otherwise an image with false diff IDs could
/// change the directories of another image.
pub(super) fn chain_steps(layers: &[DiffId]) -> Vec<ChainStep> {
    let mut chain: Vec<Digest> = Vec::with_capacity(layers.len());
    for layer in layers {
        chain.push(match chain.last() {
            None => layer.digest(),
            Some(below) => Digest::of(format!("{below} {layer}").as_bytes()),
        });
    }
    let Some(top) = chain.len().checked_sub(1) else {
        return vec![ChainStep { from: 0, to: 0, id: Digest::of(b"no layers") }];
    };
    let width = chain.len().div_ceil(STACK_MAX);
    (0..chain.len())
        .step_by(width)
        .map(|from| {
            let last = (from + width - 1).min(top);
            let id = if last == from {
                chain[last]
            } else {
                // The chain ID of the last layer is already the name of that layer's own directory.
                let below = from.checked_sub(1).map_or_else(String::new, |below| chain[below].to_string());
                Digest::of(format!("{below}..{}", chain[last]).as_bytes())
            };
            ChainStep { from, to: last + 1, id }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn layers(count: usize) -> Vec<DiffId> {
        (0..count).map(|number| DiffId::new(Digest::of(number.to_string().as_bytes()))).collect()
    }

    #[test]
    fn images_share_the_directories_of_their_common_lowest_layers() {
        let (short, long) = (chain_steps(&layers(3)), chain_steps(&layers(5)));
        assert_eq!(short[..], long[..3]);
        let mut other = layers(5);
        other[1] = DiffId::new(Digest::of(b"other"));
        let other = chain_steps(&other);
        assert_eq!(other[0], long[0]);
        assert!(
            (1..5).all(|at| other[at].id != long[at].id),
            "layers above a different layer have different directories"
        );
    }

    #[test]
    fn chain_ids_are_those_of_the_image_spec() {
        let layers = layers(2);
        let steps = chain_steps(&layers);
        assert_eq!(steps[0].id, layers[0].digest());
        assert_eq!(steps[1].id, Digest::of(format!("{} {}", layers[0], layers[1]).as_bytes()));
    }

    #[test]
    fn number_of_directories_stays_within_the_limit_for_any_number_of_layers() {
        for count in [0, 1, 249, 250, 251, 499, 500, 501, 1000, 4001] {
            let steps = chain_steps(&layers(count));
            assert!(!steps.is_empty() && steps.len() <= STACK_MAX, "{count}: {}", steps.len());
            assert_eq!((steps[0].from, steps[steps.len() - 1].to), (0, count));
            assert!(steps.windows(2).all(|two| two[0].to == two[1].from), "{count}");
            let ids: HashSet<_> = steps.iter().map(|step| step.id).collect();
            assert_eq!(ids.len(), steps.len());
        }
    }
}
