//! `manual`: prints pages of the manual.

use clap::Args;

use super::{error, output};
use crate::error::ErrorCode;
use crate::manual::ManualPage;

const EXAMPLES: &str = "\
Examples:
  List the pages:
    rcx-imagefs manual
  Read about the configuration file:
    rcx-imagefs manual config | less";

/// Print a page of the manual
///
/// The pages are Markdown. `rcx-imagefs man` writes the same pages, and one for each command, as man pages.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ManualArgs {
    /// Page to print, such as `config` or `rcx-imagefs-config(5)` [default: list the pages]
    page: Option<String>,
}

pub(super) fn run(args: &ManualArgs) -> anyhow::Result<()> {
    let Some(name) = &args.page else {
        let width = ManualPage::ALL.iter().map(|page| page.name.len()).max().unwrap_or(0);
        return ManualPage::ALL
            .iter()
            .try_for_each(|page| output::line(format!("{:<width$}  {}", page.name, page.summary())));
    };
    match ManualPage::find(name) {
        Some(page) => output::bytes(page.markdown.as_bytes()),
        None => {
            let names: Vec<&str> = ManualPage::ALL.iter().map(|page| page.name).collect();
            Err(error::fail_with_hint(
                ErrorCode::Usage,
                format!("the manual has no page `{name}`"),
                format!("its pages are: {}", names.join(", ")),
            ))
        }
    }
}
