//! `verify`: checks the content of the store.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use super::error::ErrorJson;
use super::pull::runtime;
use super::{Context, STORED, candidates, error, output, progress};
use crate::error::{ErrorCode, chain_text};
use crate::image::{Digest, Image, LayerDigest, Reference};
use crate::pipeline::{
    OpenImage, PipelineError, PlainCheck, PullJob, check_plain_layer, existing_tree_image, make_plain_layer,
    make_tree_image, open_image, open_layer, pull, read_image, read_manifest, tree_key, update_index,
};
use crate::registry::Registry;
use crate::roots::LayerDirectories;
use crate::store::{ImageRecord, PlainRoom, Store};

const EXAMPLES: &str = "\
Examples:
  Check all images:
    rcx-imagefs verify
  Check one image, and decode all of its layers:
    rcx-imagefs verify --deep python:3.12
  Fetch damaged blobs again from the registries that the images came from:
    rcx-imagefs verify --repair";

/// Check the blobs and indexes of an image, or of all images
///
/// Reads every blob and compares its digest. With --deep, also compares the hash of the compressed bytes of every span, decodes
/// every layer through its index, and compares the tar's digest with the image's configuration. Layers that were unpacked for the
/// overlay2 engine are compared with the image.
/// Missing and outdated indexes, and damaged and outdated tree images, are rebuilt. Plain layers are read and compared with their
/// checksums; damaged and outdated ones are made anew. Exits with 2 if there are problems; damaged and missing blobs are named first.
///
/// --repair fetches damaged and missing blobs again, and nothing else, from the registries in the names of their images. A damaged blob is
/// replaced when the new one is complete and verified. Images that were loaded from a file have no registry: load them again.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct VerifyArgs {
    /// The image.
    #[arg(help = format!("{STORED} [default: all images in the store]"), add = candidates::images(), value_name = "REF")]
    reference: Option<String>,
    /// Also decode every layer
    #[arg(long)]
    deep: bool,
    /// Fetch damaged and missing blobs again
    #[arg(long)]
    repair: bool,
    /// Use plain HTTP for that (implied for registries on loopback)
    #[arg(long, requires = "repair")]
    plain_http: bool,
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
    /// Damaged blobs first.
    problems: Vec<String>,
    /// Digests of all damaged or missing blobs.
    damaged_blobs: Vec<String>,
    /// Digests of the blobs that --repair has fetched again.
    repaired: Vec<String>,
    /// Number of plain layers that were read.
    plain_layers: usize,
    /// Digests of the layers whose damaged or outdated plain layer was made anew.
    plain_rebuilt: Vec<String>,
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
    /// Problems of blobs, which are reported before all others.
    blob_problems: Vec<String>,
    report: VerifyJson,
}

pub(super) fn run(context: &Context, args: &VerifyArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let images: Vec<ImageRecord> = match &args.reference {
        Some(text) => vec![context.find(&store, text)?.image],
        None => store.refs()?.images,
    };
    let mut report = check(context, &store, args.deep, &images)?;
    if args.repair && !report.damaged_blobs.is_empty() {
        let images: Vec<ImageRecord> =
            images.into_iter().filter(|image| report.damaged.contains(&name_of(context, image))).collect();
        let blobs = report.damaged_blobs.iter().filter_map(|digest| digest.parse().ok()).collect();
        let failed = repair(context, args, &store, &images, blobs)?;
        let after = check(context, &store, args.deep, &images)?;
        report.repaired = report.damaged_blobs;
        report.repaired.retain(|digest| !after.damaged_blobs.contains(digest));
        // A blob that one image could not fetch may have come with another.
        let failed =
            failed.into_iter().filter(|(name, _)| after.damaged.contains(name)).map(|(_, line)| line);
        report.problems = after.problems.into_iter().chain(failed).collect();
        (report.damaged_blobs, report.damaged) = (after.damaged_blobs, after.damaged);
        report.plain_rebuilt.extend(after.plain_rebuilt);
    }
    let failure = match report.problems.len() {
        0 => None,
        count => {
            let again =
                format!("`rcx-imagefs rm {}`, then `gc`, then pull or load again", report.damaged.join(" "));
            let hint = match report.damaged_blobs.is_empty() || args.repair {
                true => again,
                false => format!("`rcx-imagefs verify --repair` fetches damaged blobs again; or {again}"),
            };
            let message = format!("store {}: {count} problems", store.path().display());
            Some(error::fail_with_hint(ErrorCode::Damaged, message, hint))
        }
    };
    report.error = failure.as_ref().map(ErrorJson::new);
    if args.json {
        output::json(&report)?;
    } else {
        for problem in &report.problems {
            output::line(problem)?;
        }
        for blob in &report.repaired {
            output::line(format!("repaired blob {blob}"))?;
        }
        for layer in &report.plain_rebuilt {
            output::line(format!("rebuilt plain layer of {layer}"))?;
        }
        let summary =
            format!("{} images, {} blobs, {}", report.images, report.blobs, output::size(report.bytes));
        let spans = if args.deep { format!(", {} spans", report.spans) } else { String::new() };
        output::line(format!("{summary}{spans}: {} problems", report.problems.len()))?;
    }
    failure.map_or(Ok(()), Err)
}

fn name_of(context: &Context, image: &ImageRecord) -> String {
    format!("{}@{}", context.familiar(&image.name), image.digest)
}

/// Checks images. Damaged blobs are the first problems of the report.
fn check(context: &Context, store: &Store, deep: bool, images: &[ImageRecord]) -> anyhow::Result<VerifyJson> {
    let report = VerifyJson { images: images.len(), ..VerifyJson::default() };
    let mut check = StoreCheck { store, deep, seen: BTreeMap::new(), blob_problems: Vec::new(), report };
    for image in images {
        let intact = check.image(image).unwrap_or_else(|problem| {
            check.report.problems.push(format!("{}: {problem:#}", name_of(context, image)));
            false
        });
        check.report.damaged.extend((!intact).then(|| name_of(context, image)));
    }
    let StoreCheck { mut report, mut blob_problems, .. } = check;
    blob_problems.append(&mut report.problems);
    report.problems = blob_problems;
    Ok(report)
}

/// Fetches blobs of images again. Returns the name of each image for which this failed, and a line that says why.
fn repair(
    context: &Context,
    args: &VerifyArgs,
    store: &Store,
    images: &[ImageRecord],
    mut blobs: HashSet<Digest>,
) -> anyhow::Result<Vec<(String, String)>> {
    let registry = Arc::new(Registry::new(context.registry_options(args.plain_http)?)?);
    let runtime = runtime()?;
    let mut failed = Vec::new();
    for image in images {
        if blobs.is_empty() {
            break;
        }
        let name = name_of(context, image);
        if image.name.host().is_none() {
            let line = format!("image {name} was loaded from a file; load it again");
            failed.push((name, line));
            continue;
        }
        let reference = Reference { name: image.name.clone(), tag: None, digest: Some(image.digest) };
        let job = PullJob {
            store: store.clone(),
            registry: Arc::clone(&registry),
            // The image is in the store, whatever its platform.
            any_platform: true,
            plain: false,
            damaged: Arc::new(blobs.clone()),
            progress: progress::bars(&name),
        };
        let pulled = runtime.block_on(async {
            let resolved = registry.resolve(&reference).await?;
            pull(&job, &reference, resolved).await
        });
        if let Err(error) = pulled {
            let line = format!("image {name} could not be repaired: {}", chain_text(&error));
            failed.push((name, line));
        }
        // Images share blobs: fetch each only once.
        blobs.retain(|blob| store.verify_blob(blob, |_| ()).is_err());
    }
    runtime.shutdown_background();
    context.refresh(store);
    Ok(failed)
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
            // The blob is intact, and the layer can be read with the old index: a read-only store is no problem.
            if let Err(error) = update_index(self.store, &layer) {
                tracing::warn!("layer {layer}: cannot rebuild the outdated index: {}", chain_text(&error));
            }
            if first && let Err(error) = self.plain_layer(&layer) {
                self.problem(&layer, format!("its plain layer cannot be made anew: {}", chain_text(&error)));
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
            self.tree_image(&read, &open)?;
        }
        Ok(intact)
    }

    /// Makes a damaged or outdated tree image anew. The warning comes from the check.
    fn tree_image(&self, image: &Image, open: &OpenImage) -> anyhow::Result<()> {
        let key = tree_key(image);
        if self.store.tree_file(&key)?.is_some() && existing_tree_image(self.store, &key)?.is_none() {
            make_tree_image(self.store, open, &key)?;
        }
        Ok(())
    }

    /// Reads the plain layer of a layer, if any. Makes a damaged one anew.
    ///
    /// The kernel reads plain layers without comparing checksums, so nothing else finds damage.
    fn plain_layer(&mut self, layer: &LayerDigest) -> Result<(), PipelineError> {
        match self.store.has_plain(layer) {
            Ok(has_plain) => self.report.plain_layers += usize::from(has_plain),
            // Only the owner of the store may read plain layers.
            Err(error) if error.code() == ErrorCode::Permission => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        if check_plain_layer(self.store, layer, PlainCheck::Content)?.is_some() {
            make_plain_layer(self.store, layer, PlainRoom::default())?;
            self.report.plain_rebuilt.push(layer.to_string());
        }
        Ok(())
    }

    /// Compares the unpacked layers of an image, if any, with the image.
    fn directories(&mut self, image: &OpenImage) -> anyhow::Result<bool> {
        let Some(directories) = LayerDirectories::existing(self.store)? else { return Ok(true) };
        let differences = directories.verify(image, self.deep)?;
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
                self.report.damaged_blobs.push(digest.to_string());
                self.blob_problems.push(format!("{:#}", anyhow::Error::from(error)));
                false
            }
        }
    }

    /// Decodes every span, and compares the hash of its compressed bytes, and the digest of the tar with the declared one.
    fn spans(&mut self, layer: &LayerDigest, open: &crate::index::Layer, declared: &crate::image::DiffId) {
        use sha2::Digest as _;
        let mut hash = sha2::Sha256::new();
        for span in open.index().spans() {
            match open.verify_range(span).and_then(|()| open.decode_span(span)) {
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
