//! How fast the stages are, each on made-up layers that look like real ones: `cargo bench`, or `cargo bench -- merge` for
//! some. `scripts/bench` measures the whole program against what it replaces.

#![allow(clippy::unwrap_used, reason = "these are benches: a panic is how they fail")]

mod data;
mod fs;
mod index;
mod tree;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    // Ends within two minutes; the differences that matter here are not in the second digit.
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
