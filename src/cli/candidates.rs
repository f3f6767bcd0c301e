//! Values that shells offer on completion: images of the store, and roots.
//!
//! Errors are ignored: a shell offers nothing then.

use std::ffi::OsString;
use std::path::PathBuf;

use clap_complete::{ArgValueCandidates, CompletionCandidate};

use super::{Context, Global};

/// Offers the images of the store: `NAME:TAG`, and `NAME@DIGEST` for an image without a tag.
pub(super) fn images() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(image_references))
}

/// Offers the names of all roots.
pub(super) fn roots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| offered(root_ids))
}

fn offered(list: impl Fn(&Context) -> anyhow::Result<Vec<String>>) -> Vec<CompletionCandidate> {
    let words = std::env::args_os().skip_while(|word| word != "--").skip(2);
    let values = Context::new(global_options(words)).and_then(|context| list(&context));
    values.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

fn image_references(context: &Context) -> anyhow::Result<Vec<String>> {
    let images = context.open_store()?.refs()?.images;
    let references = images.iter().flat_map(|image| {
        let name = context.familiar(&image.name);
        let mut references: Vec<_> = image.tags.iter().map(|tag| format!("{name}:{tag}")).collect();
        if references.is_empty() {
            references.push(format!("{name}@{}", image.digest));
        }
        references
    });
    Ok(references.collect())
}

fn root_ids(context: &Context) -> anyhow::Result<Vec<String>> {
    let roots = context.roots(&context.open_store()?)?.list()?;
    Ok(roots.into_iter().map(|root| root.id.to_string()).collect())
}

/// Returns the global options of an unfinished command line.
fn global_options(words: impl Iterator<Item = OsString>) -> Global {
    let mut global = Global { store: None, run_dir: None, config: None, verbose: 0 };
    let mut words = words.map(|word| word.to_string_lossy().into_owned());
    while let Some(word) = words.next() {
        let (option, value) = match word.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
            None => (word, None),
        };
        let target = match option.as_str() {
            "--store" => &mut global.store,
            "--run-dir" => &mut global.run_dir,
            "--config" => &mut global.config,
            _ => continue,
        };
        *target = value.or_else(|| words.next()).map(PathBuf::from);
    }
    global
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn global_options_of_an_unfinished_line_are_found_in_both_forms() {
        let words = ["--store", "/s", "rm", "--config=/c", "a", "--run-dir"].map(OsString::from);
        let global = global_options(words.into_iter());
        assert_eq!((global.store, global.config), (Some("/s".into()), Some("/c".into())));
        assert_eq!(global.run_dir, None);
    }
}
