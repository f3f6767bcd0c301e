//! The recorded comparison with other tools has to be of these cases.

use std::collections::BTreeSet;
use std::fs;

use support::case;

#[test]
fn results_name_every_case_and_no_other() {
    let text = fs::read_to_string(case::directory().join("RESULTS.md")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let recorded: BTreeSet<&str> = rows.map(|(name, _)| name).collect();
    let cases = case::all();
    let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
    let differ: Vec<_> = names.symmetric_difference(&recorded).collect();
    assert!(differ.is_empty(), "run scripts/conformance-table: {differ:?}");
}
