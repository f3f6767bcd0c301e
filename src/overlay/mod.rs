//! Writable roots: the directory that a sandbox gets as its `/`.
//!
//! The image's tree stays what the image says. A root is an overlay whose lower layers are a skeleton with the
//! directories that a sandbox mounts upon, above the image, and whose upper layer takes the writes of one run.
