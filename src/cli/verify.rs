//! `verify`: checks the content of the store.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::error::ErrorJson;
use super::{Context, STORED, error, output};
use crate::error::ErrorCode;
use crate::image::{Digest, LayerDigest};
use crate::pipeline::{OpenImage, open_image, open_layer, read_image, read_manifest};
use crate::roots::LayerDirectories;
use crate::store::{ImageRecord, Store};

const EXAMPLES: &str = "\
Examples:
  Check all images:
    rcx-imagefs verify
  Check one image, and decode all of its layers:
    rcx-imagefs verify --deep python:3.12";

/// Check the blobs and indexes of an image, or of all images
///
/// Reads every blob and compares its digest. With --deep, also decodes every layer through its index and compares the tar's
/// digest with the image's configuration. Layers that were unpacked for the overlay2 engine are compared with the image.
/// Missing and outdated indexes are rebuilt. Exits with 2 if there are problems.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct VerifyArgs {
    /// The image.
    #[arg(help = format!("{STORED} [default: all images in the store]"), value_name = "REF")]
    reference: Option<String>,
    /// Also decode every layer
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Default, Serialize)]
struct VerifyJson {
    images: usize,
    blobs: usize,
    bytes: u64,
    spans: u64,
    problems: Vec<String>,
    /// `NAME@DIGEST` of all images with a problem.
    damaged: Vec<String>,
    /// Set if there are problems.
    error: Option<ErrorJson>,
}

/// The state of a verification.
struct StoreCheck<'a> {
    store: &'a Store,
    deep: bool,
    /// Blobs that were read, and whether they are undamaged.
    seen: BTreeMap<Digest, bool>,
    report: VerifyJson,
}

pub(super) fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let images: Vec<ImageRecord> = match &args.reference {
        Some(text) => vec![context.find(&store, text)?.image],
        None => store.refs()?.images,
    };
    let report = VerifyJson { images: images.len(), ..VerifyJson::default() };
    let mut check = StoreCheck { store: &store, deep: args.deep, seen: BTreeMap::new(), report };
    for image in &images {
        let name = format!("{}@{}", context.familiar(&image.name), image.digest);
        let intact = check.image(image).unwrap_or_else(|problem| {
            check.report.problems.push(format!("{name}: {problem:#}"));
            false
        });
        check.report.damaged.extend((!intact).then_some(name));
    }
    let mut report = check.report;
    let failure = match report.problems.len() {
        0 => None,
        count => Some(error::fail_with_hint(
            ErrorCode::Damaged,
            format!("store {}: {count} problems", store.path().display()),
            format!("`rcx-imagefs rm {}`, then `gc`, then pull or load again", report.damaged.join(" ")),
        )),
    };
    report.error = failure.as_ref().map(ErrorJson::new);
    if args.json {
        output::json(&report)?;
    } else {
        for problem in &report.problems {
            output::line(problem)?;
        }
        let summary =
            format!("{} images, {} blobs, {}", report.images, report.blobs, output::size(report.bytes));
        let spans = if args.deep { format!(", {} spans", report.spans) } else { String::new() };
        output::line(format!("{summary}{spans}: {} problems", report.problems.len()))?;
    }
    failure.map_or(Ok(()), Err)
}

impl StoreCheck<'_> {
    /// Checks an image, and returns whether it is undamaged.
    fn image(&mut self, image: &ImageRecord) -> anyhow::Result<bool> {
        if !self.blob(image.digest.digest()) {
            return Ok(false);
        }
        let manifest = read_manifest(self.store, &image.digest)?;
        if !self.blob(manifest.config().digest) {
            return Ok(false);
        }
        let read = read_image(self.store, &image.digest)?;
        let mut intact = true;
        for (layer, declared) in read.layers().iter().map(|layer| (layer.digest(), layer.diff_id())) {
            let first = !self.seen.contains_key(&layer.digest());
            if !self.blob(layer.digest()) {
                intact = false;
                continue;
            }
            match open_layer(self.store, layer) {
                Ok(open) if *open.index().diff_id() != declared => {
                    intact = false;
                    self.problem(&layer, format!("its tar is {}, not {declared}", open.index().diff_id()));
                }
                Ok(open) if self.deep && first => {
                    let before = self.report.problems.len();
                    self.spans(&layer, &open, &declared);
                    if self.report.problems.len() > before {
                        intact = false;
                        self.seen.insert(layer.digest(), false);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    intact = false;
                    self.problem(&layer, format!("{:#}", anyhow::Error::from(error)));
                }
            }
        }
        if intact {
            let open = open_image(self.store, image.digest, |_| None)?;
            intact = self.directories(&open)?;
        }
        Ok(intact)
    }

    /// Compares the unpacked layers of an image, if any, with the image.
    fn directories(&mut self, image: &OpenImage) -> anyhow::Result<bool> {
        let path = self.store.layers_path()?;
        if !path.exists() {
            return Ok(true);
        }
        let differences = LayerDirectories::open(&path)?.verify(image, self.deep)?;
        for difference in &differences {
            let problem = format!("unpacked layer: {difference}");
            if !self.report.problems.contains(&problem) {
                self.report.problems.push(problem);
            }
        }
        Ok(differences.is_empty())
    }

    /// Reports a problem with a layer, once for all images that share the layer.
    fn problem(&mut self, layer: &LayerDigest, description: impl std::fmt::Display) {
        let problem = format!("layer {layer}: {description}");
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }

    /// Reads a blob unless it was read before. Returns whether it is undamaged.
    fn blob(&mut self, digest: Digest) -> bool {
        if let Some(intact) = self.seen.get(&digest) {
            return *intact;
        }
        self.report.blobs += 1;
        let mut read = 0;
        let result = self.store.verify_blob(&digest, |bytes| read += bytes);
        self.report.bytes += read;
        self.seen.insert(digest, result.is_ok());
        match result {
            Ok(()) => true,
            Err(error) => {
                self.report.problems.push(format!("{:#}", anyhow::Error::from(error)));
                false
            }
        }
    }

    /// Decodes every span and compares the digest of the tar with the declared one.
    fn spans(&mut self, layer: &LayerDigest, open: &crate::index::Layer, declared: &crate::image::DiffId) {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        for span in open.index().spans() {
            match open.decode_span(span) {
                Ok(bytes) => hash.update(&bytes),
                Err(error) => return self.problem(layer, format!("{:#}", anyhow::Error::from(error))),
            }
            self.report.spans += 1;
        }
        let actual = Digest::new(hash.finalize().into());
        if actual != declared.digest() {
            self.problem(layer, format!("its spans decode to {actual}, not {declared}"));
        }
    }
}
