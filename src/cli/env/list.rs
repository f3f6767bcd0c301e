//! `env list`: lists the revisions of the queue.

use clap::Args;

use super::RevisionJson;
use crate::cli::{output, time};
use crate::environments::Queue;
use crate::error::chain_text;

const EXAMPLES: &str = "\
Examples:
  List all revisions:
    rcx-imagefs env list
  List what workers offer:
    rcx-imagefs env list --current
  Print the revisions that wait for a review:
    rcx-imagefs env list --json | jq -r '.[] | select(.state == \"submitted\") | \"\\(.environment)@\\(.revision)\"'";

/// List the revisions of all environments
///
/// A revision is submitted, approved, rejected, withdrawn, building, published or failed. The published revision that workers offer is
/// marked as current. Damaged revisions are errors, and the command then exits with 2 after the list.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ListEnvironmentsArgs {
    /// List only the revisions that workers offer
    #[arg(long)]
    current: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(queue: &Queue, args: &ListEnvironmentsArgs) -> anyhow::Result<()> {
    let environments = queue.environments()?;
    let revisions = || {
        environments
            .iter()
            .flat_map(|environment| environment.revisions.iter().map(move |revision| (environment, revision)))
            .filter(|(environment, revision)| {
                !args.current || environment.current().is_some_and(|current| current.id == revision.id)
            })
    };
    if args.json {
        let all: Vec<RevisionJson<'_>> =
            revisions().map(|(environment, revision)| RevisionJson::new(environment, revision)).collect();
        output::json(&all)?;
    } else {
        let row = |(environment, revision)| {
            let json = RevisionJson::new(environment, revision);
            let by = &revision.submission.by;
            vec![
                revision.id.to_string(),
                json.state.to_string(),
                if json.current { "yes" } else { "" }.to_owned(),
                time::short(by.when.as_second()),
                by.who.clone(),
                by.message
                    .as_deref()
                    .and_then(|message| message.lines().next())
                    .unwrap_or_default()
                    .to_owned(),
            ]
        };
        let rows: Vec<Vec<String>> = revisions().map(row).collect();
        output::table(&["REVISION", "STATE", "CURRENT", "SUBMITTED", "BY", "MESSAGE"], &rows)?;
    }
    let mut damaged = environments.into_iter().flat_map(|environment| environment.damaged);
    let first = damaged.next();
    for error in damaged {
        tracing::error!("{}", chain_text(&error));
    }
    first.map_or(Ok(()), |error| Err(error.into()))
}
