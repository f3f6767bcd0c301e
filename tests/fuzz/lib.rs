//! Hostile input: what holds whatever the bytes are. One target for each door that others' bytes come in by.
//!
//! | target | where the bytes come from | what is promised, beside that nothing panics or takes memory without bound |
//! |---|---|---|
//! | `tar` | a layer's tar | entries in their bounds, independent of the reader; the index says the same; a prefix gives a prefix |
//! | `gzip`, `zstd` | a layer's blob | what an ordinary decoder makes of it, at every checkpoint; damage is an error, never other bytes |
//! | `span` | one checkpoint and some bytes | filled or an error, whatever was decoded before |
//! | `index` | an index file with a right checksum | once it is opened, every look-up answers |
//! | `merge` | layers | the tree of the reference model, or the same entry is refused |
//! | `document` | manifests, indexes, configs | one set of bytes is never two things; what is written reads the same |
//! | `reference` | names, tags, digests, platforms | canonical texts read as themselves; nothing climbs out of the mount |
//! | `archive` | what `load` is given | a blob is as long as it is said to be and from the archive alone |
//! | `control` | the daemon's socket, and its answers | one answer for each request, and the next one is served |
//! | `fs` | numbers, names and offsets of the kernel | one answer for each inode, listings that go on, the file's bytes |
//! | `store` | `index.json`, `slots`, `oci-layout` | others' entries stay; a number is given out once |
//! | `config` | the configuration file | it is read, or the message says where it is wrong, in one line |
//! | `isolate` | the set-uid stand-in's arguments, the meta file | the reading of glibc; the call made of them has one root, ours |
//!
//! The bytes of an input are decisions about something well-formed, and then about what is wrong with it: see each target.
//! `scripts/fuzz` searches for inputs; those in `corpus/` are replayed by the tests.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod deflate;
mod glibc;
mod input;
mod members;
#[cfg(test)]
mod replay;
mod spans;
pub mod targets;
