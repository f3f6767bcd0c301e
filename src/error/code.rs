//! The stable codes of all errors.
//!
//! A code is part of the interface: scripts match on it, and its meaning never changes. A new kind of failure receives a new
//! code only if a script would treat it differently. Add it at the end of its group and to the manual page
//! `rcx-imagefs-errors(7)`; a test compares the two.

use std::{fmt, io};

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

            /// The printed form: lower-case words joined by `-`.
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
    /// The user lacks the permission for an operation.
    Permission = "permission",
    /// The disk or a quota is full.
    DiskFull = "disk-full",
    /// The filesystem is read-only.
    ReadOnlyFilesystem = "read-only-filesystem",
    /// The host lacks something that is needed: see `doctor`.
    Host = "host",
    /// A signal interrupted the command.
    Interrupted = "interrupted",
    /// A bug in this program.
    Internal = "internal",

    // image: references and documents.
    /// A reference, name, tag, digest or platform is malformed or cannot be used here.
    Reference = "reference",
    /// A manifest, index or image configuration is invalid.
    Document = "document",
    /// This kind of image is not supported: an artifact, an encrypted layer, an old schema.
    UnsupportedImage = "unsupported-image",
    /// The image has no manifest for the requested platform.
    NoPlatform = "no-platform",
    /// The manifest and the configuration of an image contradict each other.
    ImageMismatch = "image-mismatch",

    // layer, index, tree: content of layers.
    /// A layer is truncated, damaged or malformed.
    Layer = "layer",
    /// A layer exceeds a limit.
    LayerLimit = "layer-limit",
    /// An index file is damaged or outdated.
    Index = "index",
    /// A blob or another file of the store is damaged, or a file of the queue.
    Damaged = "damaged",
    /// The layers of an image cannot be merged.
    Merge = "merge",

    // store: the local disk.
    /// There is no store at this path.
    NoStore = "no-store",
    /// The directory is not a store or a queue, or its version is not supported.
    StoreFormat = "store-format",
    /// Another process held a lock of the store or the queue for too long.
    Busy = "busy",
    /// The image is not in the store.
    NoImage = "no-image",
    /// A blob is missing from the store.
    NoBlob = "no-blob",
    /// A daemon already serves this store or uses this run directory.
    DaemonRuns = "daemon-runs",
    /// The store has no free number for another layer or image.
    NoSlot = "no-slot",

    // registry: the network.
    /// The registry does not have the image or blob.
    NotFound = "not-found",
    /// The registry requires a login, or rejected the credentials.
    Unauthorized = "unauthorized",
    /// The registry limits the rate of requests.
    RateLimited = "rate-limited",
    /// The registry cannot be reached, or the connection failed.
    Network = "network",
    /// The registry, the daemon or a disk did not respond in time.
    Timeout = "timeout",
    /// The registry returned an error or an unexpected response.
    Registry = "registry",
    /// Stored logins cannot be used or changed.
    Credentials = "credentials",
    /// Received content does not have the expected digest or size.
    WrongContent = "wrong-content",
    /// A layer may not be distributed, so it is not pushed.
    NotDistributable = "not-distributable",

    // import: archives and layouts.
    /// An archive or layout is damaged or of an unknown kind.
    Archive = "archive",

    // fuse and daemon: the mount.
    /// The mountpoint cannot be used.
    Mountpoint = "mountpoint",
    /// The kernel lacks a required feature.
    Kernel = "kernel",
    /// No daemon is running, or it does not respond.
    NoDaemon = "no-daemon",
    /// The daemon refused a request, or its answer is malformed.
    DaemonRefused = "daemon-refused",

    // roots and unpack: images as directories.
    /// A filesystem does not support a required feature.
    Filesystem = "filesystem",
    /// No root has this ID.
    NoRoot = "no-root",
    /// The name is already in use.
    Exists = "exists",
    /// The root is in use.
    InUse = "in-use",
    /// The kernel refused a mount.
    Mount = "mount",
    /// The image has no file at this path.
    NoFile = "no-file",
    /// A layer cannot have such a file.
    UnsupportedFile = "unsupported-file",

    // sandbox: runs.
    /// No usable sandbox is installed.
    NoSandbox = "no-sandbox",
    /// The sandbox does not support an option.
    SandboxOption = "sandbox-option",
    /// The sandbox failed.
    Sandbox = "sandbox",
    /// The program cannot be executed in the image.
    Program = "program",
    /// No box is free, or the requested box is in use.
    NoBox = "no-box",
    /// A file could not be copied into or out of the box.
    Copy = "copy",
    /// A path or program is not trustworthy: another user could change it.
    Untrusted = "untrusted",

    // environments: the queue of revisions.
    /// There is no queue of environments at this path.
    NoQueue = "no-queue",
    /// The queue has no such environment or revision.
    NoRevision = "no-revision",
    /// The state of the environment or revision does not permit the operation.
    RevisionState = "revision-state",
    /// A build context is refused.
    Context = "context",
    /// A Dockerfile cannot be read, or uses an image that is unknown or not allowed.
    Dockerfile = "dockerfile",
    /// The build of a revision has failed, and its author has to submit another one.
    Build = "build",
    /// A list of environments is malformed.
    EnvironmentList = "environment-list",
    /// The list of environments has no signature of an allowed signer, or cannot be signed.
    Signature = "signature",
    /// The configuration of a worker has no place for the list of environments.
    WorkerFile = "worker-file",
    /// The smoke command of an image has failed.
    Smoke = "smoke",
    /// The command that a set of environments triggers has failed.
    Exec = "exec",
}

impl ErrorCode {
    /// Returns the code for an error of the operating system.
    #[must_use]
    pub fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnlyFilesystem,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Io,
        }
    }
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
