//! The stable codes of all errors.
//!
//! A code is part of the interface: scripts match on it. It never changes its meaning; a new kind of failure that a script
//! could treat differently gets a new code, at the end of its group and in the manual page `rcx-imagefs-errors(7)` (a test
//! compares the two).

use std::fmt;

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $text:literal,)+) => {
        /// The stable code of an error, printed by `--json`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl ErrorCode {
            /// All codes, in the order of the manual.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code as it is printed: lower case words, joined by `-`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

codes! {
    // Any command.
    /// The arguments are wrong or contradict each other.
    Usage = "usage",
    /// The configuration file is invalid.
    Configuration = "configuration",
    /// The operating system refused an operation on a file.
    Io = "io",
    /// The user may not do this.
    Permission = "permission",
    /// The disk or a quota is full.
    DiskFull = "disk-full",
    /// The filesystem is read-only.
    ReadOnlyFilesystem = "read-only-filesystem",
    /// A signal ended the command.
    Interrupted = "interrupted",
    /// A fault of the program itself.
    Internal = "internal",

    // image: references and documents.
    /// A reference, name, tag, digest or platform has the wrong form.
    Reference = "reference",
    /// A manifest, index or image configuration is invalid.
    Document = "document",
    /// The image is of a kind that is not supported: an artifact, an encrypted layer, an old schema.
    UnsupportedImage = "unsupported-image",
    /// The image has no manifest for the platform.
    NoPlatform = "no-platform",
    /// Manifest and configuration of an image contradict each other.
    ImageMismatch = "image-mismatch",

    // layer, index, tree: content of layers.
    /// A layer is truncated, damaged or malformed.
    Layer = "layer",
    /// A layer goes beyond a limit.
    LayerLimit = "layer-limit",
    /// An index file is damaged or outdated.
    Index = "index",
    /// Content of a layer that was stored before fails its checksum.
    Damaged = "damaged",
    /// The layers of an image do not fit together.
    Merge = "merge",

    // store: the local disk.
    /// There is no store at the path.
    NoStore = "no-store",
    /// The directory is not a store, or a store of another version.
    StoreFormat = "store-format",
    /// Another process holds a lock of the store for too long.
    Busy = "busy",
    /// The image is not in the store.
    NoImage = "no-image",
    /// A blob is missing from the store.
    NoBlob = "no-blob",
    /// A daemon already serves this store.
    DaemonRuns = "daemon-runs",

    // registry: the network.
    /// The registry does not have the image or blob.
    NotFound = "not-found",
    /// The registry wants a login, or refuses the one it got.
    Unauthorized = "unauthorized",
    /// The registry limits the rate of requests.
    RateLimited = "rate-limited",
    /// The registry cannot be reached, or the connection broke.
    Network = "network",
    /// The registry did not answer in time.
    Timeout = "timeout",
    /// The registry answered with an error or with something unexpected.
    Registry = "registry",
    /// Stored credentials cannot be used.
    Credentials = "credentials",
    /// Content from outside does not have the digest or the size that was announced.
    WrongContent = "wrong-content",

    // import: archives and layouts.
    /// An archive or layout is damaged or of an unknown kind.
    Archive = "archive",

    // fuse and daemon: the mount.
    /// The mountpoint cannot be used.
    Mountpoint = "mountpoint",
    /// The kernel lacks something that is needed.
    Kernel = "kernel",
    /// No daemon answers.
    NoDaemon = "no-daemon",
    /// The daemon refused a request.
    DaemonRefused = "daemon-refused",

    // roots and unpack: images as directories.
    /// A filesystem cannot hold what was asked for.
    Filesystem = "filesystem",
    /// There is no root with this ID.
    NoRoot = "no-root",
    /// There is already something with this name.
    Exists = "exists",
    /// The root is in use.
    InUse = "in-use",
    /// The kernel refused a mount.
    Mount = "mount",

    // sandbox: runs.
    /// No usable sandbox is installed.
    NoSandbox = "no-sandbox",
    /// The sandbox does not support an option.
    SandboxOption = "sandbox-option",
    /// The sandbox failed.
    Sandbox = "sandbox",
    /// The program cannot be executed in the image.
    Program = "program",
    /// No box is free, or the box is taken.
    NoBox = "no-box",
    /// A file could not be copied into or out of the box.
    Copy = "copy",
    /// A path or program is not trusted.
    Untrusted = "untrusted",
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn codes_are_unique_lower_case_words() {
        let texts: HashSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for text in texts {
            assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{text}");
        }
    }
}
