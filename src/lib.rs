//! OCI images as read-only directories for sandboxes.
//!
//! `rcx-imagefs` is mounted once on a host and shows every image of its store as `/images/<name>@<digest>/`: one merged
//! tree, built when it is first looked at from the indexed layers, read in place from the blobs as they were served. This
//! page is the map of the code; the README is the user's.
//!
//! # The way of the data
//!
//! ```text
//! reference --registry/import--> blobs (verified) --layer--> entries + checkpoints --index--> Index (mmap)  one per layer
//!                                                                                               | x N
//!                                                                                             merge         whiteouts, links
//!                                                                                               v
//!                                                             Tree (immutable, behind Arc)   one per image
//!                                                              |
//!                                                              fs --> fuse --> /images/<name>@<digest>/
//! ```
//!
//! 1. **One direction.** Each stage hands the next a value and never reaches back. An image becomes visible by one write of
//!    `index.json`, and in a running mount by one swap of the namespace.
//! 2. **One merge.** [`tree::merge`] alone knows what whiteouts, opaque markers and links do. Whatever shows an image to a
//!    sandbox follows its result, so that all ways to show it agree.
//! 3. **The filesystem is an ordinary struct.** [`fs::ImageFs`] answers with plain values and knows no kernel; the adapter
//!    in [`fuse`] is thin.
//! 4. **Untrusted bytes become validated types at one door**: [`layer`] for blobs, [`index::Index::open`] for index files,
//!    [`image`] for names and documents, [`fs`] for the kernel's inode numbers. Behind it nothing is checked twice.
//! 5. **One errno table**, next to the filesystem's error type.
//! 6. **Inode numbers are functions of content**: of (layer, entry) for files, so that a file of a shared layer is the same
//!    inode in every image and the kernel caches its pages once; of (image, node) for directories, and for files that have
//!    another link count in this image than in their layer. They survive a restart: the slots of layers and images, the upper
//!    half of the numbers, are kept in the store.
//! 7. **Sync core, async edge.** Registry downloads run on tokio; indexing, merging and serving are plain threads, and none
//!    of them waits without a deadline.
//! 8. **The store is an OCI image layout.** What is derived from its blobs stands beside them, has a version and a checksum,
//!    and can be deleted at any time: it is made again from the blob.
//!
//! # Modules, in the order of dependency
//!
//! A module uses only those above it; a test holds them to it.
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | what all errors share: stable codes, error chains |
//! | [`os`] | kernel helpers: locks by name, walks inside a root, errors that name their path |
//! | [`image`] | names and documents: digests, references, manifests; no I/O |
//! | [`layer`] | one layer's blob: codecs with checkpoints, the tar walk |
//! | [`index`] | one layer's index file: format, build, open, read |
//! | [`tree`] | all layers as one tree: merge |
//! | [`store`] | the local disk: blobs, references, slots, locks |
//! | [`registry`] | the network: resolving, authentication, downloads |
//! | [`import`] | files: OCI layouts and `docker save` archives |
//! | [`pipeline`] | joins the above: pull, load, open |
//! | [`unpack`] | trees written to a disk, whole or as what one has in place of another |
//! | [`fs`] | the filesystem, without a kernel |
//! | [`fuse`] | the kernel: mount, session, adapter |
//! | [`roots`] | writable roots: an overlay of an image and an upper layer |
//! | [`sandbox`] | isolated runs in such a root: isolate, bubblewrap, and a stand-in for isolate |
//! | [`daemon`] | the process that serves: control socket, watching the store |
//! | [`cli`] | the commands |
//!
//! # Words
//!
//! *blob*: bytes as served · *layer*: one tar · *entry*: one tar member · *marker*: an entry that hides others · *span*: a
//! stretch of a layer that can be decoded on its own · *checkpoint*: the state to resume decoding from · *window*: the bytes
//! before a checkpoint that are referred to behind it · *node*: one file of a merged tree · *tree*: an image's merged nodes ·
//! *published*: visible in the mount · *slot*: the persistent number of a layer or an image.
//!
//! # Layer semantics
//!
//! The result is what a sequential application of the layers gives, inside the image's own root. The rules are told where
//! they are kept: names and markers at [`layer::LayerPath`], tar forms at [`layer::Walk`], application at [`tree::merge`].
//! An image that breaks one is refused whole, when it is pulled.

pub mod cli;
pub mod daemon;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod import;
pub mod index;
pub mod layer;
pub mod os;
pub mod pipeline;
pub mod registry;
pub mod roots;
pub mod sandbox;
pub mod store;
pub mod tree;
pub mod unpack;
