//! The fuzz targets. Each `run` takes an input and panics if a property does not hold.

pub mod archive;
pub mod config;
pub mod control;
pub mod document;
pub mod fs;
pub mod gzip;
pub mod index;
pub mod isolate;
pub mod merge;
pub mod reference;
pub mod span;
pub mod store;
pub mod tar;
pub mod zstd;
