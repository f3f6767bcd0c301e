//! Every type of the crate has a name of its own, so that a name in a message, a search or a review means one thing.

use std::collections::BTreeMap;

use super::source::{Source, Violation, sources};

/// The types that a file declares, with their positions: structs, enums, traits and aliases, but no associated types.
fn declared(source: &Source) -> Vec<(usize, String)> {
    let mut types = Vec::new();
    for keyword in ["struct", "enum", "trait", "type"] {
        for at in source.words(keyword) {
            let name = at + keyword.len() + 1;
            let name = source.code.get(name).map_or("", |_| source.name_at(name));
            let starts_upper = name.starts_with(|first: char| first.is_ascii_uppercase());
            if starts_upper && !(keyword == "type" && is_associated(source, at)) {
                types.push((at, name.to_owned()));
            }
        }
    }
    types.sort();
    types
}

/// Whether a position is directly within the braces of an `impl` or a `trait`.
fn is_associated(source: &Source, at: usize) -> bool {
    let mut blocks = Vec::new();
    let mut header = 0;
    for (position, byte) in source.code[..at].iter().enumerate() {
        match byte {
            b'{' => blocks.push(starts_impl_or_trait(&source.code[header..position])),
            b'}' => drop(blocks.pop()),
            b';' => {}
            _ => continue,
        }
        header = position + 1;
    }
    blocks.last().is_some_and(|block| *block)
}

/// Whether the text before a brace starts an `impl` or a `trait`, perhaps after attributes and visibility.
fn starts_impl_or_trait(header: &[u8]) -> bool {
    let text = String::from_utf8_lossy(header);
    let mut rest = text.trim_start();
    loop {
        if let Some(attribute) = rest.strip_prefix('#') {
            rest = attribute.split_once(']').map_or("", |(_, rest)| rest).trim_start();
        } else if let Some(behind) = rest.strip_prefix("pub(") {
            rest = behind.split_once(')').map_or("", |(_, rest)| rest).trim_start();
        } else if let Some(behind) = rest.strip_prefix("pub ").or_else(|| rest.strip_prefix("unsafe ")) {
            rest = behind.trim_start();
        } else {
            return rest.starts_with("impl") || rest.starts_with("trait ");
        }
    }
}

/// All declarations of a name that another declaration has too.
fn duplicates(sources: &[Source]) -> Vec<Violation> {
    let mut places: BTreeMap<String, Vec<Violation>> = BTreeMap::new();
    for source in sources {
        for (at, name) in declared(source) {
            let text = format!("a type named `{name}`, as elsewhere");
            places.entry(name).or_default().push(source.violation(at, text));
        }
    }
    places.into_values().filter(|places| places.len() > 1).flatten().collect()
}

#[test]
fn type_names_are_unique() {
    let duplicates: Vec<String> = duplicates(&sources()).iter().map(Violation::to_string).collect();
    assert!(duplicates.is_empty(), "\n{}", duplicates.join("\n"));
}

#[test]
fn scanner_finds_types_of_every_kind_and_no_associated_types() {
    let text = "
pub(crate) struct A<T>(T);
enum B { A }
unsafe trait C { type Item; const D: u32; }
impl Iterator for A { type Item = u8; fn f() { struct E; type F = u8; } }
#[cfg(test)]
mod tests { type G = u8; // struct H
}
fn f(x: impl Iterator) { type I = u8; }
";
    let names: Vec<String> = declared(&Source::new("a.rs", text)).into_iter().map(|(_, name)| name).collect();
    assert_eq!(names, ["A", "B", "C", "E", "F", "G", "I"]);
    let found =
        duplicates(&[Source::new("a.rs", "struct A;\nenum B {}"), Source::new("b.rs", "\n\ntrait A {}")]);
    assert_eq!(found.iter().map(|violation| violation.line).collect::<Vec<_>>(), [1, 3]);
}
