//! Fuzz targets: properties that hold for every input, however hostile. Each parser of untrusted bytes has one target.
//!
//! Every target also checks that nothing panics and that memory stays bounded.
//!
//! | target | source of the bytes | property |
//! |---|---|---|
//! | `tar` | a layer's tar | entries are within bounds and do not depend on the reader; the index agrees; a prefix of the tar yields a prefix of the entries |
//! | `gzip`, `zstd` | a layer's blob | decodes as an ordinary decoder does, from every checkpoint; damage is an error, never wrong bytes |
//! | `span` | one checkpoint and some bytes | the span is decoded in full or fails, independently of earlier decodes |
//! | `index` | an index file with a correct checksum | after a successful open, every lookup returns |
//! | `merge` | layers | the same tree as the reference model, or the same entry is refused |
//! | `document` | manifests, indexes, configurations | no document parses as two kinds; written documents parse as the original |
//! | `reference` | names, tags, digests, platforms | canonical text parses as the same value; no path escapes the mount |
//! | `archive` | the input of `load` | every blob has its declared size, and its bytes come from the archive |
//! | `control` | the daemon's socket and its responses | every request gets one response, and the next connection is served |
//! | `fs` | inode numbers, names and offsets from the kernel | one answer per inode; listings resume at any offset; reads return the file's bytes |
//! | `store` | `index.json`, `slots`, `oci-layout` | foreign entries are kept; every slot is assigned once |
//! | `config` | the configuration file | it parses, or the error names the problem in one line |
//! | `isolate` | the arguments of the set-uid stand-in, the meta file | parsed as glibc parses them; the resulting call has exactly one root, ours |
//!
//! Most targets read the input as a list of decisions: first about well-formed data, then about how to damage it.
//! `scripts/fuzz` searches for new inputs; the tests replay those in `corpus/`.

#![allow(clippy::unwrap_used, reason = "these are tests: a panic is how they fail")]

mod deflate;
mod glibc;
mod input;
mod members;
#[cfg(test)]
mod replay;
mod spans;
pub mod targets;
