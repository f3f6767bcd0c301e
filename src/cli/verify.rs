//! `verify`: whether the store holds what it says.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use super::{Context, REFERENCE, error, output};
use crate::image::{Digest, LayerDigest};
use crate::pipeline::{OpenImage, open_image, open_layer, read_image, read_manifest};
use crate::roots::LayerDirectories;
use crate::store::{ImageRecord, Store};

/// Check the blobs and indexes of an image, or of all images
///
/// Reads every blob and compares its digest. With --deep, every span is decoded through the index as well, and the decoded
/// tar is compared with the image's configuration. A missing or outdated index is built anew. Exits 2 when anything is wrong.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The image.
    #[arg(help = format!("{REFERENCE}; all images of the store if none is named"), value_name = "REF")]
    reference: Option<String>,
    /// Decode every span too
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct VerifyJson {
    images: usize,
    blobs: usize,
    bytes: u64,
    spans: u64,
    problems: Vec<String>,
    /// `NAME@DIGEST` of all images that have one of the problems.
    damaged: Vec<String>,
}

struct Check<'a> {
    store: &'a Store,
    deep: bool,
    /// Blobs that were read, and whether they are whole.
    seen: BTreeMap<Digest, bool>,
    report: VerifyJson,
}

pub(super) fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let images: Vec<ImageRecord> = match &args.reference {
        Some(text) => vec![context.find(&store, text)?.image],
        None => store.refs()?.images,
    };
    let (problems, damaged) = (Vec::new(), Vec::new());
    let report = VerifyJson { images: images.len(), blobs: 0, bytes: 0, spans: 0, problems, damaged };
    let mut check = Check { store: &store, deep: args.deep, seen: BTreeMap::new(), report };
    for image in &images {
        let name = format!("{}@{}", context.familiar(&image.name), image.digest);
        let whole = check.image(image).unwrap_or_else(|problem| {
            check.report.problems.push(format!("{name}: {problem:#}"));
            false
        });
        check.report.damaged.extend((!whole).then_some(name));
    }
    let report = check.report;
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
    match report.problems.len() {
        0 => Ok(()),
        count => Err(error::advise(
            format!("store {}: {count} problems", store.path().display()),
            format!("`rcx-imagefs rm {}`, then `gc`, then pull or load again", report.damaged.join(" ")),
        )),
    }
}

impl Check<'_> {
    /// Checks an image; tells whether it is whole.
    fn image(&mut self, image: &ImageRecord) -> anyhow::Result<bool> {
        if !self.blob(image.digest.digest()) {
            return Ok(false);
        }
        let manifest = read_manifest(self.store, &image.digest)?;
        if !self.blob(manifest.config().digest) {
            return Ok(false);
        }
        let read = read_image(self.store, &image.digest)?;
        let mut whole = true;
        for (layer, declared) in read.layers().iter().map(|layer| (layer.digest(), layer.diff_id())) {
            let first = !self.seen.contains_key(&layer.digest());
            if !self.blob(layer.digest()) {
                whole = false;
                continue;
            }
            match open_layer(self.store, layer) {
                Ok(open) if *open.index().diff_id() != declared => {
                    whole = false;
                    self.problem(&layer, format!("its tar is {}, not {declared}", open.index().diff_id()));
                }
                Ok(open) if self.deep && first => {
                    let before = self.report.problems.len();
                    self.spans(&layer, &open, &declared);
                    if self.report.problems.len() > before {
                        whole = false;
                        self.seen.insert(layer.digest(), false);
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    whole = false;
                    self.problem(&layer, format!("{:#}", anyhow::Error::from(error)));
                }
            }
        }
        if whole {
            let open = open_image(self.store, image.digest, |_| None)?;
            whole = self.directories(&open)?;
        }
        Ok(whole)
    }

    /// Compares the unpacked layers of an image, where it has some, with the image.
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

    /// Images that share a layer share what is wrong with it: it is told once.
    fn problem(&mut self, layer: &LayerDigest, what: impl std::fmt::Display) {
        let problem = format!("layer {layer}: {what}");
        if !self.report.problems.contains(&problem) {
            self.report.problems.push(problem);
        }
    }

    /// Reads a blob, once; tells whether it is whole.
    fn blob(&mut self, digest: Digest) -> bool {
        if let Some(whole) = self.seen.get(&digest) {
            return *whole;
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

    /// Decodes every span, and hashes what comes out.
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
