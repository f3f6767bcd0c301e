//! Benchmarks of the single stages on synthetic layers that resemble real ones.
//!
//! `cargo bench --bench stages` runs all of them, `cargo bench --bench stages -- merge` a selection. `scripts/bench` compares
//! the whole program with the tools that it replaces.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

mod data;
mod fs;
mod index;
mod tree;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // The whole run takes under two minutes. Only differences of more than a few percent matter here.
    let mut criterion = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    index::bench(&mut criterion);
    tree::bench(&mut criterion);
    fs::bench(&mut criterion);
    criterion.final_summary();
}
