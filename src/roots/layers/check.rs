//! Compares layer directories with the layers from which they were made.

use std::os::fd::AsFd as _;

use rustix::fs::Mode;

use super::chain::chain_steps;
use super::make::StepPlanner;
use super::meta::LayerMeta;
use super::{LayerDirectories, META, TREE};
use crate::error::chain_text;
use crate::image::DiffId;
use crate::pipeline::OpenImage;
use crate::roots::RootsError;
use crate::roots::mounts::OPEN_DIRECTORY;
use crate::unpack::check;

impl LayerDirectories {
    /// Compares the existing layer directories of an image with its layers; with `content`, also compares every byte of every
    /// file.
    ///
    /// Returns the differences, one line each.
    ///
    /// # Errors
    ///
    /// The image cannot be read.
    pub fn verify(&self, image: &OpenImage, content: bool) -> Result<Vec<String>, RootsError> {
        let mut differences = Vec::new();
        let mut planner = StepPlanner::new(image);
        let diff_ids: Vec<DiffId> = image.layers.iter().map(|layer| *layer.index().diff_id()).collect();
        for step in chain_steps(&diff_ids) {
            let directory = match self.open_step(&step) {
                Ok(Some(directory)) => directory,
                Ok(None) => continue,
                Err(error) => {
                    differences.push(chain_text(&error));
                    continue;
                }
            };
            let path = directory.path.join(TREE);
            let (plan, meta) = planner.plan(&step)?;
            if (LayerMeta { bytes: directory.meta.bytes, ..meta }) != directory.meta {
                differences.push(format!("{}: {META} does not match the layer", directory.path.display()));
            }
            let root = match rustix::fs::openat(&directory.lock, TREE, OPEN_DIRECTORY, Mode::empty()) {
                Ok(root) => root,
                Err(errno) => {
                    differences.push(format!("{}: cannot open: {errno}", path.display()));
                    continue;
                }
            };
            let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
            differences.extend(
                check(&plan, &layers, root.as_fd(), &path, content)
                    .map_err(|source| RootsError::Unpack { layer: step.to, source })?,
            );
        }
        Ok(differences)
    }
}
