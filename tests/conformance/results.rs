//! Checks that the recorded comparison with other tools is up to date.

use std::collections::BTreeSet;
use std::fs;

use support::case;

#[test]
fn results_list_exactly_the_existing_cases() {
    let text = fs::read_to_string(case::directory().join("RESULTS.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let recorded: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let cases = case::all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let differ: Vec<_> = names.symmetric_difference(&recorded).collect();
    assert!(differ.is_empty(), "RESULTS.md differs in {differ:?}; run scripts/conformance-table");
}
