//! Arguments of the form `REF:PATH`, and the images that they name.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::{Context, error};
use crate::error::ErrorCode;
use crate::pipeline::{OpenImage, open_image};
use crate::store::{GcLease, Store};

/// A reference and a path in the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ImagePath {
    pub(super) reference: String,
    /// `None` if the argument is a reference only.
    pub(super) path: Option<PathBuf>,
}

impl ImagePath {
    /// Splits `REF:PATH`. PATH is absolute, because `NAME:TAG` looks like a relative one.
    pub(super) fn parse(text: &str) -> Self {
        // No reference contains `:/`, except after the scheme of a URL, which is no reference.
        match text.split_once(":/") {
            Some((reference, path)) if !path.starts_with('/') => {
                Self { reference: reference.to_owned(), path: Some(Path::new("/").join(path)) }
            }
            _ => Self { reference: text.to_owned(), path: None },
        }
    }

    /// Returns the path. It must be given.
    pub(super) fn required(&self) -> anyhow::Result<&Path> {
        self.path.as_deref().ok_or_else(|| {
            let message = format!("`{}` has no path in the image", self.reference);
            error::fail_with_hint(
                ErrorCode::Usage,
                message,
                "write REF:PATH with an absolute path, as in python:3.12:/etc",
            )
        })
    }
}

/// An image that a command reads, and the lease that keeps `gc` from freeing its blobs meanwhile.
pub(super) struct LeasedImage {
    pub(super) image: OpenImage,
    /// `NAME@DIGEST`.
    pub(super) name: String,
    _lease: Option<GcLease>,
}

impl Context {
    /// Opens an image of the store for reading.
    pub(super) fn open_leased(&self, store: &Store, reference: &str) -> anyhow::Result<LeasedImage> {
        // A user who may only read the store takes no lease. Open files stay readable even if `gc` removes them.
        let lease = store.lease(None).ok();
        let found = self.find(store, reference)?.image;
        let name = format!("{}@{}", self.familiar(&found.name), found.digest);
        let image = open_image(store, found.digest, |_| None).with_context(|| name.clone())?;
        Ok(LeasedImage { image, name, _lease: lease })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_starts_at_the_first_colon_before_a_slash() {
        for (text, reference, path) in [
            ("python", "python", None),
            ("python:3.12", "python:3.12", None),
            ("python:3.12:/etc", "python:3.12", Some("/etc")),
            ("python:/", "python", Some("/")),
            ("host:5000/a/b:1:/usr/lib/", "host:5000/a/b:1", Some("/usr/lib/")),
            ("host:5000/a@sha256:00:/a:/b", "host:5000/a@sha256:00", Some("/a:/b")),
            ("https://host/a", "https://host/a", None),
        ] {
            let expected = ImagePath { reference: reference.to_owned(), path: path.map(PathBuf::from) };
            assert_eq!(ImagePath::parse(text), expected, "{text}");
        }
    }
}
