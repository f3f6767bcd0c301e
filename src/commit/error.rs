//! Errors of committing a root.

use std::io;
use std::path::PathBuf;

use crate::error::ErrorCode;
use crate::image::{LAYERS_MAX, ManifestError};
use crate::index::ReadError;
use crate::layer::Printable;
use crate::os::PathError;
use crate::pipeline::PipelineError;
use crate::roots::RootsError;

use super::InstructionError;

/// The reason why a root cannot be committed or compared with its image.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The root cannot be used.
    #[error(transparent)]
    Root(#[from] RootsError),
    /// The image cannot be opened, or the new image cannot be stored.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A file of the root cannot be read.
    #[error(transparent)]
    File(#[from] PathError),
    /// A file of the image, with which a file of the root is compared, cannot be read.
    #[error("cannot read /{} of the image", Printable(.path))]
    ImageFile {
        /// The path in the image.
        path: Vec<u8>,
        /// The reason.
        source: ReadError,
    },
    /// The name of a file means something else in a layer.
    #[error("cannot commit /{}: in a layer, a name that starts with `.wh.` deletes another file", Printable(.0))]
    MarkerName(Vec<u8>),
    /// The deletion of a file cannot be expressed in a layer.
    #[error("cannot commit the deletion of /{}: its name is longer than 251 bytes", Printable(.0))]
    LongDeletion(Vec<u8>),
    /// The name of an extended attribute cannot be expressed in a layer.
    #[error("cannot commit /{}: the name of its extended attribute `{}` contains `=`", Printable(.path), Printable(.name))]
    XattrName {
        /// The file.
        path: Vec<u8>,
        /// The name of the attribute.
        name: Vec<u8>,
    },
    /// A file became shorter while it was read.
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    /// The layer cannot be written. The error of the store has more details.
    #[error("cannot write the layer")]
    Layer(#[source] io::Error),
    /// A change of the configuration is invalid.
    #[error(transparent)]
    Instruction(#[from] InstructionError),
    /// A new owner is not of the form `UID=UID`.
    #[error("owner mapping `{0}` is not of the form UID=UID, two numbers below 4294967295")]
    OwnerMapping(String),
    /// `SOURCE_DATE_EPOCH` is not a time.
    #[error("SOURCE_DATE_EPOCH is `{0}`, which is not a number of seconds since 1970")]
    Epoch(String),
    /// The image has as many layers as an image can have.
    #[error("cannot add a layer: the image has {LAYERS_MAX} layers, the most that an image can have")]
    TooManyLayers,
    /// The documents of the new image are invalid.
    #[error("the new image is not valid")]
    Document(#[from] ManifestError),
}

impl CommitError {
    /// The stable code of the error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Root(error) => error.code(),
            Self::Pipeline(error) => error.code(),
            Self::File(error) => error.code(),
            Self::ImageFile { source, .. } => source.code(),
            Self::MarkerName(_) | Self::LongDeletion(_) | Self::XattrName { .. } => {
                ErrorCode::UnsupportedFile
            }
            Self::Changed(_) => ErrorCode::InUse,
            Self::Layer(error) => ErrorCode::of_io(error),
            Self::Instruction(error) => error.code(),
            Self::OwnerMapping(_) | Self::Epoch(_) => ErrorCode::Usage,
            Self::TooManyLayers => ErrorCode::LayerLimit,
            Self::Document(error) => error.code(),
        }
    }

    /// What the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Root(RootsError::InUse { .. } | RootsError::Locked(_)) | Self::Changed(_) => {
                Some("end the processes that use the root first".to_owned())
            }
            Self::Root(RootsError::Missing(_) | RootsError::NotMounted(_)) => {
                Some("`rcx-imagefs root list` lists all roots".to_owned())
            }
            Self::Root(RootsError::LostDaemon(_)) => Some(
                "roots of the engine `fuse` end with their daemon; what was written to them is lost"
                    .to_owned(),
            ),
            Self::Root(error) => error.hint().map(str::to_owned),
            Self::Pipeline(error) => error.hint(),
            Self::MarkerName(_) | Self::XattrName { .. } => {
                Some("rename or remove it in the root".to_owned())
            }
            _ => None,
        }
    }
}
