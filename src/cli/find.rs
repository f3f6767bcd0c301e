//! Finds images of the store by name or digest.

use super::catalog::Catalog;
use super::{Context, error, suggestions};
use crate::error::ErrorCode;
use crate::image::{Reference, ReferenceError, Tag};
use crate::store::{ImageRecord, Refs, Store};

/// Fewest hex digits of a digest that name an image.
const DIGITS_MIN: usize = 6;

/// The image of a reference.
pub(super) struct FoundImage {
    pub(super) image: ImageRecord,
    /// The tag by which it was found; `None` if it was found by its digest.
    pub(super) tag: Option<Tag>,
}

impl Context {
    /// Finds the image of a reference in the store. If a digest fits several names of one image, any of them is returned.
    pub(super) fn find(&self, store: &Store, text: &str) -> anyhow::Result<FoundImage> {
        self.find_in(&store.refs()?, text, |images| images.dedup_by_key(|image| image.digest))
    }

    /// The same for a user who may not be able to read the store.
    pub(super) fn find_listed(&self, catalog: &Catalog, text: &str) -> anyhow::Result<FoundImage> {
        self.find_in(&catalog.refs()?, text, |images| images.dedup_by_key(|image| image.digest))
    }

    /// The same, but a digest must fit only one name: for commands that change it.
    pub(super) fn find_one_name(&self, store: &Store, text: &str) -> anyhow::Result<FoundImage> {
        self.find_in(&store.refs()?, text, |_| ())
    }

    fn find_in(
        &self,
        refs: &Refs,
        text: &str,
        merge: impl FnOnce(&mut Vec<&ImageRecord>),
    ) -> anyhow::Result<FoundImage> {
        let candidates = match Reference::candidates(text, self.default_registry()) {
            // Without a name, the text can only be a digest.
            Err(ReferenceError::ImageId(_)) => Vec::new(),
            Err(error) if is_path(text) => return Err(error::with_hint(error.into(), path_hint(text))),
            candidates => candidates?,
        };
        if let Some(found) = candidates.iter().find_map(|reference| by_name(refs, reference)) {
            return Ok(found);
        }
        let Some(digits) = digest_digits(text) else { return Err(self.not_found(refs, text, &candidates)) };
        let mut images: Vec<&ImageRecord> =
            refs.images.iter().filter(|image| has_digest(image, digits)).collect();
        images.sort_by_key(|image| image.digest);
        merge(&mut images);
        match images.as_slice() {
            [] if candidates.is_empty() || text.starts_with("sha256:") => Err(error::fail_with_hint(
                ErrorCode::NoImage,
                format!("no image in the store has the digest {text}"),
                "`rcx-imagefs images` lists the images in the store",
            )),
            [] => Err(self.not_found(refs, text, &candidates)),
            [image] => Ok(FoundImage { image: (*image).clone(), tag: None }),
            several => {
                let names: Vec<String> = several
                    .iter()
                    .map(|image| format!("{}@{}", self.familiar(&image.name), image.digest))
                    .collect();
                Err(error::fail_with_hint(
                    ErrorCode::Reference,
                    format!("digest {text} is ambiguous; it fits {}", names.join(", ")),
                    "give more digits, or NAME@DIGEST",
                ))
            }
        }
    }

    /// The error for a reference without an image.
    fn not_found(&self, refs: &Refs, text: &str, candidates: &[Reference]) -> anyhow::Error {
        let shown = candidates.first().map_or_else(
            || text.to_owned(),
            |candidate| {
                let tag = candidate.digest.is_none().then(|| candidate.tag_or_latest());
                Reference { tag: tag.or_else(|| candidate.tag.clone()), ..candidate.clone() }.to_string()
            },
        );
        let mut tags: Vec<Tag> = refs
            .images
            .iter()
            .filter(|image| candidates.iter().any(|candidate| candidate.name == image.name))
            .flat_map(|image| image.tags.iter().cloned())
            .collect();
        tags.sort_unstable();
        let hint = match (tags.as_slice(), candidates.first()) {
            ([], _) if text.starts_with("sha256:") => format!("a digest needs at least {DIGITS_MIN} digits"),
            ([], _) => {
                let near = self.near_images(refs, text);
                let suggestion = match near.as_slice() {
                    [] => "`rcx-imagefs images` lists the images in the store".to_owned(),
                    near => format!("did you mean {}?", near.join(" or ")),
                };
                format!("`rcx-imagefs pull {text}` fetches it; {suggestion}")
            }
            (tags, Some(reference)) => suggestions::tag_hint(reference, tags, "the store"),
            (_, None) => String::new(),
        };
        error::fail_with_hint(ErrorCode::NoImage, format!("image {shown} is not in the store"), hint)
    }
}

/// Returns whether a text can only be a path.
fn is_path(text: &str) -> bool {
    ["/", "./", "../"].iter().any(|start| text.starts_with(start))
}

/// The hint for a path in place of a reference. With other engines, `run -v HOST:INSIDE` binds a directory.
fn path_hint(path: &str) -> &'static str {
    match path.contains(":/") {
        true => "`run --dir IN=OUT` binds a directory of the host; `-v` only logs more",
        false => "`rcx-imagefs load PATH` loads images from a file or a directory",
    }
}

impl Context {
    /// The images of the store whose names, with or without a tag, end with a text or are near to it.
    pub(super) fn near_images(&self, refs: &Refs, text: &str) -> Vec<String> {
        let names = refs.images.iter().flat_map(|image| {
            let name = self.familiar(&image.name);
            let tagged = image.tags.iter().map(|tag| format!("{name}:{tag}")).collect::<Vec<_>>();
            std::iter::once(name).chain(tagged)
        });
        suggestions::near_names(text, names).into_iter().map(|name| format!("`{name}`")).collect()
    }
}

fn by_name(refs: &Refs, reference: &Reference) -> Option<FoundImage> {
    let tag = reference.tag_or_latest();
    let image = match reference.digest {
        Some(digest) => refs.with_digest(&reference.name, digest),
        None => refs.tagged(&reference.name, &tag),
    }?;
    Some(FoundImage { image: image.clone(), tag: reference.digest.is_none().then_some(tag) })
}

/// Returns the hex digits of a text that is a digest or its beginning.
fn digest_digits(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_digest = (DIGITS_MIN..=64).contains(&digits.len())
        && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_digest.then_some(digits)
}

/// Whether the digest of an image, or of the index that it was chosen from, starts with these digits.
fn has_digest(image: &ImageRecord, digits: &str) -> bool {
    image.digest.digest().hex().starts_with(digits)
        || image.index.is_some_and(|index| index.digest().hex().starts_with(digits))
}
