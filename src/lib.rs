//! OCI images as read-only directories for sandboxes.
//!
//! A daemon shows every image of its store as `/images/<name>@<digest>/`: a merged tree, built on first access from the
//! indexes of the layers, whose files are decoded on demand from the compressed blobs. This page is the map of the code. The README and the manual (`src/manual/`) are for users; `tests/README.md` explains the tests.
//!
//! # Data flow
//!
//! ```text
//! reference --registry/import--> blobs (verified) --layer--> entries + checkpoints --index--> Index (mmap)  one per layer
//!                                                                                               | x N
//!                                                                                             merge         whiteouts, links
//!                                                                                               v
//!                                                             Tree (immutable, behind Arc)   one per image
//!                                                              |
//!                                   +--------------------------+-------------------------+
//!                                   |                          |                         |
//!                                  fs --> fuse            roots::layers               unpack        engines
//!                                   |
//!                 /images/<name>@<digest>/ --> roots (overlay with an upper) --> sandbox (isolate, bubblewrap)
//! ```
//!
//! # Principles
//!
//! 1. **One direction.** Each stage passes a value to the next and never calls back. An image becomes visible through one
//!    write of `index.json`, and in a running mount through one swap of its list of names ([`fs`]).
//! 2. **One merge.** Only [`tree::merge`] (`src/tree/merge.rs`) applies whiteouts, opaque markers and links. All engines use
//!    its result, so they show the same tree.
//! 3. **A filesystem is an ordinary struct.** [`fs::ImageFs`] (the images) and [`fs::LayerFiles`] (the layers, for EROFS) answer with plain
//!    values and know nothing of the kernel; the adapters in [`fuse`] are thin. Tests call the structs directly.
//! 4. **Untrusted bytes become validated types in one place for each kind**: [`layer`] for blobs, [`index::Index::open`] for
//!    index files, [`image`] for names and documents, [`fs`] for the kernel's inode numbers. Later code validates no structure
//!    again; checksums are verified at each decode.
//! 5. **One errno table**, next to the error type of the filesystem. **One list of error codes** for users, in [`error`].
//! 6. **Inode numbers are stable.** A file's number is made from (slot of the layer, entry), so a file of a shared layer is
//!    the same inode in all images, and the kernel caches its pages once. The number of a directory, and of a file whose
//!    link count in the image differs from that in its layer, is made from (slot of the image, node).
//!    Slots are numbers that the store assigns once and keeps, so inode numbers survive a restart.
//! 7. **Synchronous core, asynchronous edge.** Registry downloads and the control socket run on tokio. Indexing, merging and
//!    serving are plain threads. No request of the kernel waits without a deadline.
//! 8. **The store is an OCI image layout.** Everything derived from its blobs is stored beside them with a version and a
//!    checksum. It can be deleted while nothing uses the store, and is rebuilt from the blobs.
//!
//! # Modules, in order of dependency
//!
//! A module uses only modules above it in this table (`tests/it/architecture.rs` checks this). Besides the library there are
//! two programs: `src/main.rs` and `src/isolate.rs`, the stand-in for isolate, which links only what it calls.
//!
//! | module | contents |
//! |---|---|
//! | [`error`] | what all errors share: stable codes, error chains |
//! | [`os`] | kernel helpers: locks by name, walks inside a root, errors that name their path |
//! | [`image`] | names and documents: digests, references, manifests; no I/O |
//! | [`layer`] | a layer's blob: codecs with checkpoints, tar parsing |
//! | [`index`] | a layer's index file: format, build, open, read |
//! | [`tree`] | all layers of an image as one tree: merge |
//! | [`erofs`] | a tree as an EROFS image, whose extents point into the tars of the layers |
//! | [`store`] | the local disk: blobs, references, slots, locks |
//! | [`registry`] | the network: resolving references, logins, mirrors, downloads |
//! | [`import`] | OCI layouts and `docker save` archives |
//! | [`pipeline`] | combines the above: pull, load, open |
//! | [`unpack`] | writes trees to a disk, either whole or as the difference between two trees |
//! | [`fs`] | the filesystems of images and of layers, without the kernel |
//! | [`fuse`] | the kernel side: mount, session, adapter |
//! | [`daemon`] | the serving process: control socket, watching the store |
//! | [`roots`] | writable roots: an overlay of an image and an upper |
//! | [`commit`] | what was written to a root as a layer on its image |
//! | [`sandbox`] | runs in such a root: isolate, bubblewrap, and the stand-in for isolate |
//! | [`environments`] | revisions of environments: submission, review, the state of builds, publication; what a worker offers |
//! | [`manual`] | the pages of the manual, and their conversion to man pages |
//! | [`cli`] | the commands |
//!
//! # Words
//!
//! *blob*: bytes as served · *layer*: one tar · *entry*: one tar member · *marker*: an entry that hides others · *span*: a
//! stretch of a layer that can be decoded on its own · *checkpoint*: the state to resume decoding from · *window*: the bytes
//! before a checkpoint that the following bytes refer to · *node*: one file of a merged tree · *tree*: an image's merged
//! nodes · *trace*: the spans that runs of an image read first · *published*: visible in the mount · *slot*: the persistent
//! number of a layer or an image · *root*: a directory for a sandbox to use as `/` · *upper*: its writable part · *engine*:
//! how a root gets its image · *environment*: a reviewed image that workers offer under an ID of the judge · *revision*: one
//! submission of it · *base*: an image that its Dockerfile uses.
//!
//! # Layer semantics
//!
//! The merged tree equals a sequential application of the layers inside the image's own root. `rcx-imagefs-images(7)` has the
//! rules for users. Each rule is documented where it is
//! implemented: names and markers at [`layer::LayerPath`], tar formats at [`layer::TarWalk`], application at [`tree::merge`]. An
//! image that breaks a rule is refused as a whole when it is pulled.
//!
//! # Where things go
//!
//! - A new error: a variant in the error enum of its module (mostly `src/MODULE/error.rs`), and an arm in that enum's `code`
//!   method. If a script should be able to tell the failure apart from others, add a code to `src/error/code.rs` and to the
//!   manual page `rcx-imagefs-errors(7)`; a test compares the two.
//! - A new configuration key: `src/cli/config/` and `rcx-imagefs-config(5)`.
//! - A new command: a file in `src/cli/`, a variant in `src/cli/mod.rs`, and the manual page that describes it.
//! - A new test: see `tests/README.md`.

pub mod cli;
pub mod commit;
pub mod daemon;
pub mod environments;
pub mod erofs;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod import;
pub mod index;
pub mod layer;
pub mod manual;
pub mod os;
pub mod pipeline;
pub mod registry;
pub mod roots;
pub mod sandbox;
pub mod store;
pub mod tree;
pub mod unpack;
